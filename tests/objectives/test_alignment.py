"""Penalties on features, against slow references."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from biomass.errors import ConfigError
from biomass.models import Network
from biomass.objectives import Classification, coral_penalty, reverse_gradient, with_penalty

GROUPS = torch.tensor([7, 9, 7, 9, 9, 7, 4, 4, 5])  # plate 5 has one row
DOMAINS = np.array([4, 5, 7, 9, 11])


def features(n=9, d=6):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def slow_coral(x, groups):
    d, penalties = x.shape[1], []
    names = [name for name in np.unique(groups) if (groups == name).sum() > 1]
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            total = 0.0
            a, b = x[groups == first], x[groups == second]
            cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
            for k in range(d):
                total += (a[:, k].mean() - b[:, k].mean()) ** 2 / d
                for m in range(d):
                    total += (cov_a[k, m] - cov_b[k, m]) ** 2 / d**2
            penalties.append(total)
    return sum(penalties) / len(penalties)


def test_coral_equals_the_slow_reference():
    x = features()
    assert float(coral_penalty(x, GROUPS)) == pytest.approx(slow_coral(x.numpy(), GROUPS.numpy()), rel=1e-12)


def test_coral_does_not_see_order_names_or_a_common_offset():
    x = features()
    expected = coral_penalty(x, GROUPS)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(coral_penalty(x[order] + 3, GROUPS[order] * 2), expected)


def test_coral_pulls_groups_together():
    x = features().requires_grad_()
    before = coral_penalty(x, GROUPS)
    before.backward()
    assert float(coral_penalty(x.detach() - 0.1 * x.grad, GROUPS)) < float(before.detach())


@pytest.mark.parametrize("groups", [[0] * 4, [0, 1, 2, 3], [0, 0, 0, 1]])
def test_coral_of_less_than_two_groups_of_two_rows_is_nothing(groups):
    x = features(4).requires_grad_()
    assert float(coral_penalty(x, torch.tensor(groups)).detach()) == 0


@pytest.mark.parametrize("strength", [0.0, 0.3, 2.0])
def test_a_reversed_gradient_is_the_plain_one_times_minus_lambda(strength):
    x = features().requires_grad_()
    (plain,) = torch.autograd.grad(x.pow(3).sin().sum(), x)
    reversed_ = reverse_gradient(x, strength)
    assert torch.equal(reversed_, x)
    (found,) = torch.autograd.grad(reversed_.pow(3).sin().sum(), x)
    torch.testing.assert_close(found, -strength * plain)


def problem():
    torch.manual_seed(0)
    network = Network(nn.Linear(5, 6), 6, nn.Linear(6, 3)).double()
    batch = SimpleNamespace(
        labels=torch.arange(9) % 3, groups=GROUPS, controls=torch.tensor([1, *[0] * 8], dtype=torch.int8)
    )
    return network, features(d=5), batch


def gradients(loss, module):
    return torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)


def test_the_encoder_learns_against_the_discriminator_and_the_discriminator_for_itself():
    network, x, batch = problem()
    objective = with_penalty(Classification(True, "treated"), "dann", 0.7, 6, DOMAINS).double()
    loss, scalars = objective(network, x, batch)
    of_encoder, of_discriminator = gradients(loss, network.encoder), gradients(loss, objective.discriminator)

    logits, found = network(x, features=True)
    guess = objective.discriminator(found)
    told = F.cross_entropy(guess, torch.tensor([2, 3, 2, 3, 3, 2, 0, 0, 1]))  # places in DOMAINS
    classified = F.cross_entropy(logits[1:], batch.labels[1:])
    plain, against = gradients(classified, network.encoder), gradients(told, network.encoder)
    for a, b, c in zip(of_encoder, plain, against, strict=True):
        torch.testing.assert_close(a, b - 0.7 * c)
    for a, b in zip(of_discriminator, gradients(told, objective.discriminator), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(loss, classified + told)
    assert float(scalars["penalty"]) == pytest.approx(float(told.detach()))
    assert {"accuracy", "plates_told_apart"} <= scalars.keys()


def test_coral_is_added_to_the_classification():
    network, x, batch = problem()
    loss, _ = with_penalty(Classification(), "coral", 0.3, 6, DOMAINS)(network, x, batch)
    logits, found = network(x, features=True)
    expected = F.cross_entropy(logits, batch.labels) + 0.3 * slow_coral(found.detach().numpy(), GROUPS.numpy())
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)


def test_a_discriminator_depends_on_its_seed_alone():
    before = torch.get_rng_state()
    a, b, c = (with_penalty(Classification(), "dann", 1.0, 6, DOMAINS, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["discriminator.0.weight"], c["discriminator.0.weight"])


def test_an_unknown_penalty_is_refused():
    assert with_penalty(Classification(), None, 1.0, 6, DOMAINS) == Classification()
    with pytest.raises(ConfigError, match="'dan' is unknown; did you mean 'dann'"):
        with_penalty(Classification(), "dan", 1.0, 6, DOMAINS)
