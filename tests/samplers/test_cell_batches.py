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
    """Image numbers that are neither dense nor ascending, cells of an image scattered over the rows of the screen.

    Returns the image of every row of the screen, the rows in use, and the numbers of the images.
    """
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(10 * len(sizes))[: len(sizes)]
    images = rng.permutation(np.concatenate([np.repeat(numbers, sizes), np.repeat(numbers, 2)]))
    taken = dict(zip(numbers.tolist(), sizes, strict=True))
    rows = []
    for row in rng.permutation(len(images)).tolist():  # of every image as many rows as its size, the others elsewhere
        if taken[int(images[row])]:
            taken[int(images[row])] -= 1
            rows.append(row)
    return images, np.array(rows), numbers


def cells_of(images, rows):
    """Slow: image number → its rows in use, in the order of ``rows``."""
    return {int(n): [int(r) for r in rows if images[r] == n] for n in np.unique(images)}


def serve(sizes, mode, num_img=2, seed=0, **options):
    images, rows, numbers = lay_out(sizes)
    batches = PlateBatches(numbers, seed=seed, **({"batch_size": 4} | options))
    return CellBatches(batches, rows, images, mode, num_img, seed=seed), cells_of(images, rows), batches


def assert_drawn_by_the_rules(batch, images, cells, mode, num_img):
    if mode == "first":
        assert batch.tolist() == [cells[image][0] for image in images]
    else:
        views = batch.reshape(len(images), num_img).tolist()
        for image, drawn in zip(images, views, strict=True):
            assert set(drawn) <= set(cells[image])
            if mode == "random_single":
                assert len(set(drawn)) == 1
            else:
                uses = [Counter(drawn)[cell] for cell in cells[image]]
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
    for batch, images in zip(served, batches, strict=True):
        assert batch.dtype == np.int64
        assert_drawn_by_the_rules(batch, images.tolist(), cells, mode, num_img)


@pytest.mark.parametrize("mode", ["random_single", "random", "first"])
def test_one_image_with_one_cell(mode):
    sampler, cells, _ = serve([1], mode, num_img=3)
    (cell,) = next(iter(cells.values()))
    assert [b.tolist() for b in sampler] == [[cell] * (3 if mode.startswith("random") else 1)]


@pytest.mark.parametrize(("mode", "num_img"), [("random_single", 2), ("random", 2), ("random", 7)])
def test_every_cell_and_every_set_of_cells_is_equally_likely(mode, num_img):
    sampler, cells, batches = serve([4, 6, 5, 6, 4], mode, num_img, batch_size=5)
    drawn = {image: Counter() for image in cells}
    for epoch in range(3000):
        sampler.set_epoch(epoch)
        for batch, images in zip(sampler, batches, strict=True):
            for image, views in zip(images.tolist(), batch.reshape(-1, num_img).tolist(), strict=True):
                drawn[image][tuple(views[:2])] += 1  # with 7 views, the first two of a round through all cells
    for image, counter in drawn.items():
        if mode == "random_single":
            possible = [(cell, cell) for cell in cells[image]]
        else:
            possible = list(itertools.permutations(cells[image], 2))
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


def test_the_same_image_draws_anew_in_every_batch_and_epoch():
    images = np.zeros(1000, np.int64)
    sampler = CellBatches(PlateBatches(np.zeros(1, np.int64), batch_size=1), np.arange(1000), images, "random_single")
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


def test_controls_and_plates_are_drawn_over_images():
    images = np.repeat(np.arange(12), 3)
    plates = np.repeat([0, 1], 6)
    controls = np.tile([True, False, False, False, False, False], 2)
    batches = PlateBatches(np.arange(12), plates, controls=controls, num_controls=1, parts=2)
    for batch in CellBatches(batches, np.arange(36), images, "random", 2):
        served = images[batch]
        assert len(np.unique(plates[served])) == 1
        assert controls[served].sum() == 2  # two views of the one control image


def test_images_with_too_few_cells_are_counted(caplog):
    with caplog.at_level(logging.WARNING):
        sampler, *_ = serve([1, 2, 5, 1], "random", num_img=2)
    assert sampler.num_short == 2
    assert "2 of 4 images have fewer than num_img=2 cells" in caplog.text
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


def test_an_image_without_cells_is_refused():
    batches = PlateBatches(np.array([3, 5, 8]), batch_size=2)
    with pytest.raises(DataError, match=r"image 5 has no cells \(2 of 3 have none\)"):
        CellBatches(batches, np.arange(3), np.array([3, 3, 4]))


def test_bad_options():
    batches = PlateBatches(np.arange(3), batch_size=2)
    for options, message in (
        ({"mode": "randm"}, "mode 'randm' is unknown; choose random_single, random, first"),
        ({"num_img": 0}, "num_img is 0; it must be 1 or more"),
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
    ):
        with pytest.raises(ConfigError, match=message):
            CellBatches(batches, np.arange(3), np.arange(3), **options)


def test_views_and_cells_must_agree():
    check_views("random", 5, 5)
    check_views("random_single", 2, 2)
    with pytest.raises(ConfigError, match=r"dataloaders\.num_img is 2, but num_views is 5"):
        check_views("random", 2, 5)
    with pytest.raises(ConfigError, match=r"num_views and dataloaders\.num_img are 1"):
        check_views("random_single", 1, 1)
    with pytest.raises(ConfigError, match="mode 'all' gives no views"):
        check_views("all", 2, 2)
