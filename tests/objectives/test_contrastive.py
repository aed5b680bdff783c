"""The contrastive loss against an oracle, a slow reference and closed forms."""

import math
from types import SimpleNamespace

import pytest
import torch

from biomass.errors import ConfigError
from biomass.objectives.contrastive import Contrastive, contrastive_loss


def slow_loss(projections, instances, temperature):
    unit = projections / projections.norm(dim=1, keepdim=True)
    losses = []
    for i in range(len(unit)):
        others = [j for j in range(len(unit)) if j != i]
        positives = [j for j in others if instances[j] == instances[i]]
        if positives:
            s = {j: float(unit[i] @ unit[j]) / temperature for j in others}
            total = math.log(sum(math.exp(value) for value in s.values()))
            losses.append(total - sum(s[p] for p in positives) / len(positives))
    return sum(losses) / len(losses)


def views(n, k, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n * k, d, generator=generator, dtype=torch.float64), torch.arange(n * k) // k


@pytest.mark.parametrize(("n", "k"), [(8, 2), (5, 3), (4, 5)])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_equals_the_slow_reference(n, k, temperature):
    z, instances = views(n, k, 6)
    expected = slow_loss(z, instances.tolist(), temperature)
    assert float(contrastive_loss(z, instances, temperature)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_equals_supcon_of_pytorch_metric_learning(k):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    z, instances = views(12, k, 16, seed=k)
    oracle = losses.SupConLoss(temperature=0.05)(z, instances)
    assert float(contrastive_loss(z, instances, 0.05)) == pytest.approx(float(oracle), rel=1e-9)


def test_closed_form_of_orthogonal_instances():
    # views of an instance coincide, instances are orthogonal: l = log((k-1) e^(1/t) + k(n-1)) - 1/t
    n, k, t = 6, 3, 0.2
    z = torch.eye(n, dtype=torch.float64).repeat_interleave(k, 0)
    expected = math.log((k - 1) * math.exp(1 / t) + k * (n - 1)) - 1 / t
    assert float(contrastive_loss(z, torch.arange(n * k) // k, t)) == pytest.approx(expected, rel=1e-12)


def test_chunks_change_neither_loss_nor_gradient():
    z, instances = views(30, 5, 8)
    results = []
    for chunk in (7, 64, 10_000):
        leaf = z.clone().requires_grad_()
        loss = contrastive_loss(leaf, instances, 0.05, chunk_size=chunk)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    for loss, grad in results[1:]:
        torch.testing.assert_close(loss, results[0][0], rtol=1e-12, atol=0)
        torch.testing.assert_close(grad, results[0][1], rtol=1e-9, atol=1e-12)


def test_invariant_to_scale_and_order():
    z, instances = views(10, 3, 8)
    expected = contrastive_loss(z, instances, 0.1)
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(1))
    scaled = z * torch.linspace(0.1, 10, len(z), dtype=torch.float64)[:, None]
    torch.testing.assert_close(contrastive_loss(scaled[order], instances[order], 0.1), expected)


def test_stable_in_half_precision_and_at_low_temperature():
    z, instances = views(20, 4, 32)
    exact = contrastive_loss(z, instances, 0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = contrastive_loss(z.bfloat16(), instances, 0.01)
    assert low.dtype == torch.float32
    assert torch.isfinite(low)
    # the only error left is the rounding of the inputs to 8 bits, amplified by 1/t
    reference = contrastive_loss(z.bfloat16().double(), instances, 0.01)
    assert float(low) == pytest.approx(float(reference), rel=1e-4)
    assert float(low) == pytest.approx(float(exact), rel=0.1)


def test_a_zero_projection_gives_no_nan():
    z, instances = views(4, 2, 3)
    z[0] = 0
    leaf = z.requires_grad_()
    contrastive_loss(leaf, instances, 0.05).backward()
    assert torch.isfinite(leaf.grad).all()


def test_rows_without_a_positive_are_negatives_only():
    z, _ = views(3, 2, 4)
    instances = torch.tensor([0, 0, 1, 2, 3, 4])
    assert float(contrastive_loss(z, instances, 0.3)) == pytest.approx(slow_loss(z, instances.tolist(), 0.3))
    assert float(contrastive_loss(z, torch.arange(6), 0.3)) == 0


def test_temperature_must_be_positive():
    z, instances = views(2, 2, 3)
    with pytest.raises(ConfigError, match="temperature is 0"):
        contrastive_loss(z, instances, 0)


def one_rank(rank, store, sizes, gradients):
    """A rank's share of a batch through a data-parallel layer; its gradient goes into the shared (W, …) tensor."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=len(sizes))
    try:
        layer, x, instances = shared_problem(sum(sizes))
        mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        parallel = torch.nn.parallel.DistributedDataParallel(layer)
        batch = SimpleNamespace(instances=instances[mine])
        with torch.no_grad():  # validation: the other rank takes no part in it
            alone, _ = Contrastive(0.2, gather=True)(layer, x[mine], batch)
        assert alone == contrastive_loss(layer(x[mine]), instances[mine], 0.2)
        Contrastive(0.2, gather=True)(parallel, x[mine], batch)[0].backward()
        gradients[rank] = layer.weight.grad
    finally:
        torch.distributed.destroy_process_group()


def shared_problem(n):
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(6, 4, bias=False)
    torch.nn.init.normal_(layer.weight, generator=generator)
    return layer, torch.randn(n, 6, generator=generator), torch.arange(n) // 2


def test_gathered_over_ranks_equals_one_large_batch(tmp_path):
    sizes = (6, 10)  # ranks need not hold equally many
    gradients = torch.zeros(2, 4, 6).share_memory_()
    torch.multiprocessing.spawn(one_rank, (str(tmp_path / "store"), sizes, gradients), nprocs=2)
    layer, x, instances = shared_problem(sum(sizes))
    loss, _ = Contrastive(0.2, gather=True)(layer, x, SimpleNamespace(instances=instances))  # alone: nothing to gather
    loss.backward()
    for gradient in gradients:
        torch.testing.assert_close(gradient, layer.weight.grad)


def test_outputs_that_are_there_already_give_the_same_loss():
    layer, x, instances = shared_problem(8)
    batch, objective = SimpleNamespace(instances=instances), Contrastive(0.2)
    outputs = layer(x)
    assert torch.equal(objective(lambda _: outputs, x, batch)[0], objective(layer, x, batch)[0])
