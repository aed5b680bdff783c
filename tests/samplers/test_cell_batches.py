"""Which cells stand in a batch, against a slow reading of the rules."""

import itertools
import logging
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch.utils.data import DataLoader, Dataset

from biomass.errors import ConfigError, DataError
from biomass.samplers import PlateBatches
from biomass.samplers.cell_batches import CellBatches, check_views

few = settings(max_examples=60, deadline=None, derandomize=True)
counts = st.lists(st.integers(1, 7), min_size=1, max_size=25)


def lay_out(sizes, seed=0):
    """Field numbers that are neither dense nor ascending, cells of a field scattered over the rows of the screen.

    Returns the field of every row of the screen, the rows in use, and the numbers of the fields.
    """
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(10 * len(sizes))[: len(sizes)]
    fields = rng.permutation(np.concatenate([np.repeat(numbers, sizes), np.repeat(numbers, 2)]))
    taken = dict(zip(numbers.tolist(), sizes, strict=True))
    rows = []
    for row in rng.permutation(len(fields)).tolist():  # of every field as many rows as its size, the others elsewhere
        if taken[int(fields[row])]:
            taken[int(fields[row])] -= 1
            rows.append(row)
    return fields, np.array(rows), numbers


def cells_of(fields, rows):
    """Slow: field number → its rows in use, in the order of ``rows``."""
    return {int(n): [int(r) for r in rows if fields[r] == n] for n in np.unique(fields)}


def serve(sizes, mode, num_img=2, seed=0, **options):
    fields, rows, numbers = lay_out(sizes)
    batches = PlateBatches(numbers, seed=seed, **({"batch_size": 4} | options))
    return CellBatches(batches, rows, fields, mode, num_img, seed=seed), cells_of(fields, rows), batches


def assert_drawn_by_the_rules(batch, fields, cells, mode, num_img):
    if mode == "first":
        assert batch.tolist() == [cells[field][0] for field in fields]
    else:
        views = batch.reshape(len(fields), num_img).tolist()
        for field, drawn in zip(fields, views, strict=True):
            assert set(drawn) <= set(cells[field])
            if mode == "random_single":
                assert len(set(drawn)) == 1
            else:
                uses = [Counter(drawn)[cell] for cell in cells[field]]
                assert max(uses) - min(uses) <= 1  # with enough cells: none twice


@few
@given(
    sizes=counts,
    mode=st.sampled_from(["random_single", "random", "first"]),
    num_img=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 3),
)
def test_batches_obey_the_rules_of_their_mode(sizes, mode, num_img, seed, epoch):
    sampler, cells, batches = serve(sizes, mode, num_img, seed)
    sampler.set_epoch(epoch)
    served = list(sampler)
    assert len(served) == len(sampler) == len(batches)
    for batch, fields in zip(served, batches, strict=True):
        assert batch.dtype == np.int64
        assert_drawn_by_the_rules(batch, fields.tolist(), cells, mode, num_img)


@pytest.mark.parametrize("mode", ["random_single", "random", "first"])
def test_one_image_with_one_cell(mode):
    sampler, cells, _ = serve([1], mode, num_img=3)
    (cell,) = next(iter(cells.values()))
    assert [b.tolist() for b in sampler] == [[cell] * (3 if mode.startswith("random") else 1)]


@pytest.mark.parametrize(("mode", "num_img"), [("random_single", 2), ("random", 2), ("random", 7)])
def test_every_cell_and_every_set_of_cells_is_equally_likely(mode, num_img):
    sampler, cells, batches = serve([4, 6, 5, 6, 4], mode, num_img, batch_size=5)
    drawn = {field: Counter() for field in cells}
    for epoch in range(3000):
        sampler.set_epoch(epoch)
        for batch, fields in zip(sampler, batches, strict=True):
            for field, views in zip(fields.tolist(), batch.reshape(-1, num_img).tolist(), strict=True):
                drawn[field][tuple(views[:2])] += 1  # with 7 views, the first two of a round through all cells
    for field, counter in drawn.items():
        if mode == "random_single":
            possible = [(cell, cell) for cell in cells[field]]
        else:
            possible = list(itertools.permutations(cells[field], 2))
        assert set(counter) <= set(possible)
        assert chisquare([counter[p] for p in possible]).pvalue > 1e-4


def test_which_cells_serve_once_more_is_random():
    sampler, cells, _ = serve([3], "random", num_img=4, batch_size=1)
    twice = Counter()
    for epoch in range(1500):
        sampler.set_epoch(epoch)
        (batch,) = sampler
        (cell,) = [c for c, n in Counter(batch.tolist()).items() if n == 2]
        twice[cell] += 1
    assert chisquare([twice[c] for c in next(iter(cells.values()))]).pvalue > 1e-4


@pytest.mark.parametrize("mode", ["random_single", "random"])
def test_draws_depend_on_seed_epoch_and_batch_and_on_nothing_else(mode):
    torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002

    def epoch(number, **options):
        sampler, *_ = serve([5] * 40, mode, **options)
        sampler.set_epoch(number)
        return [b.tolist() for b in sampler]

    first, later = epoch(0), epoch(1)
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    assert epoch(0) == first != later == epoch(1)
    assert epoch(0, seed=1) != first
    np.random.seed(1)  # noqa: NPY002
    assert epoch(0) == first
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]


def test_the_same_image_draws_again_in_every_batch_and_epoch():
    fields = np.zeros(1000, np.int64)
    sampler = CellBatches(PlateBatches(np.zeros(1, np.int64), batch_size=1), np.arange(1000), fields, "random_single")
    drawn = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        drawn.update(int(b[0]) for b in sampler)
    assert len(drawn) > 15


def test_an_epoch_goes_on_where_it_was_stopped():
    sampler, *_ = serve([5] * 40, "random")
    sampler.set_epoch(3)
    whole = [b.tolist() for b in sampler]
    sampler.set_epoch(3, start=4)
    assert len(sampler) == len(whole) - 4
    assert [b.tolist() for b in sampler] == whole[4:]


def test_processes_share_the_batches_of_one():
    alone = [b.tolist() for b in serve([5] * 40, "random")[0]]
    shared = [[b.tolist() for b in serve([5] * 40, "random", rank=r, world_size=2)[0]] for r in range(2)]
    assert [b for pair in zip(*shared, strict=True) for b in pair] == alone


def with_a_quota(mode, **options):
    """Cells of 3 plates of 11, 7 and 2 fields of 1 to 5 cells each, 2 controls a part, at most 2 plates a batch."""
    rng = np.random.default_rng(5)
    plates = np.repeat([4, 7, 9], [11, 7, 2])  # of every field
    controls = np.isin(np.arange(20), [0, 3, 5, 9, 12, 13, 18])
    fields = rng.permutation(np.repeat(np.arange(20), rng.integers(1, 6, 20)))  # of every cell
    over_fields = PlateBatches(
        np.arange(20), plates, controls=controls, num_controls=2, batch_size=8, max_groups=2, seed=2, **options
    )
    return CellBatches(over_fields, np.arange(len(fields)), fields, mode, 3, seed=2), fields, plates, controls


@pytest.mark.parametrize("mode", ["random_single", "random", "first"])
def test_every_part_of_a_plate_brings_its_control_fields_along(mode):
    sampler, fields, plates, controls = with_a_quota(mode)
    treated, uses = [], Counter()
    for batch in sampler:
        views = fields[batch].reshape(-1, 1 if mode == "first" else 3)
        assert (views == views[:, :1]).all()  # the views of a field stand together
        served = views[:, 0]
        assert len(set(served)) == len(served) <= 8
        for plate in np.unique(plates[served]):
            here = served[plates[served] == plate]
            assert controls[here].sum() == min(2, controls[plates == plate].sum())
            assert not controls[here].all()
        treated += served[~controls[served]].tolist()
        uses.update(served[controls[served]].tolist())
    assert sorted(treated) == np.flatnonzero(~controls).tolist()  # each once an epoch
    for plate in (4, 7, 9):
        of_plate = [uses[field] for field in np.flatnonzero(controls & (plates == plate))]
        assert max(of_plate) - min(of_plate) <= 1


@pytest.mark.parametrize("mode", ["random_single", "random", "first"])
def test_a_quota_of_controls_over_ranks_and_within_an_epoch(mode):
    whole = [b.tolist() for b in with_a_quota(mode)[0]]
    assert len(whole) == 4
    shares = [[b.tolist() for b in with_a_quota(mode, rank=r, world_size=2)[0]] for r in range(2)]
    assert [b for pair in zip(*shares, strict=True) for b in pair] == whole
    for rank in range(2):
        sampler, *_ = with_a_quota(mode, rank=rank, world_size=2)
        sampler.set_epoch(0, start=1)
        assert [b.tolist() for b in sampler] == shares[rank][1:]
        assert len(sampler) == 1


def test_fields_with_too_few_cells_are_counted(caplog):
    with caplog.at_level(logging.WARNING):
        sampler, *_ = serve([1, 2, 5, 1], "random", num_img=2)
    assert sampler.num_short == 2
    assert "2 of 4 fields have fewer than 2 cells" in caplog.text
    caplog.clear()
    assert serve([1, 2, 5, 1], "random_single", num_img=2)[0].num_short == 0
    assert serve([2, 2], "random", num_img=2)[0].num_short == 0
    assert not caplog.records


def test_serves_a_dataloader_and_has_nothing_that_fabric_would_rewrite():
    class Rows(Dataset):
        def __getitem__(self, rows):
            return rows

    sampler, *_ = serve([5] * 10, "random")
    served = [rows.tolist() for rows in DataLoader(Rows(), sampler=sampler, batch_size=None)]
    assert served == [b.tolist() for b in sampler]
    assert not hasattr(sampler, "batch_size")
    assert not hasattr(sampler, "drop_last")


def test_a_field_without_cells_is_refused():
    batches = PlateBatches(np.array([3, 5, 8]), batch_size=2)
    with pytest.raises(DataError, match=r"field 5 has no cells \(2 of 3 have none\)"):
        CellBatches(batches, np.arange(3), np.array([3, 3, 4]))


def test_bad_options():
    batches = PlateBatches(np.arange(3), batch_size=2)
    for options, advice, words in (
        ({"mode": "randm"}, "mode", ["'randm'", "did you mean 'random'?"]),
        ({"mode": "x"}, "mode", ["'x'", "random_single, random or first"]),
        ({"num_img": 0}, "num_img", ["0", "1 or more"]),
        ({"seed": -1}, None, ["-1", "0 or more"]),
    ):
        with pytest.raises(ConfigError) as error:
            CellBatches(batches, np.arange(3), np.arange(3), **options)
        assert all(word in str(error.value) for word in words)
        assert error.value.advice == advice


def test_views_and_cells_must_agree():
    check_views("random", 5, 5)
    check_views("random_single", 2, 2)
    for views, advice, words in (
        (("random", 2, 5), "num_img", "hold 2 .* 5 are expected"),
        (("random_single", 1, 1), "num_img", "hold 1 "),
        (("all", 2, 2), "mode", "'all'"),
    ):
        with pytest.raises(ConfigError, match=words) as error:
            check_views(*views)
        assert error.value.advice == advice


@pytest.mark.parametrize("mode", ["random", "random_single", "first"])
def test_no_batch_holds_a_row_that_is_not_served(mode):
    sampler, cells, _ = serve([3, 1, 5, 2], mode)
    assert sorted(sampler.served.tolist()) == sorted(row for own in cells.values() for row in own)
    seen = set()
    for epoch in range(40):
        sampler.set_epoch(epoch)
        seen |= {row for batch in sampler for row in batch.tolist()}
    assert seen == ({own[0] for own in cells.values()} if mode == "first" else set(sampler.served.tolist()))
