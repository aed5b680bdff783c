"""Plate batches against a slow, obvious reading of their rules."""

import itertools
import pickle
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, Dataset

from biomass.errors import ConfigError, DataError
from biomass.samplers import PlateBatches, ShareOfRank

few = settings(max_examples=60, deadline=None, derandomize=True)
ids = st.lists(st.sampled_from([-3, 0, 1, 4, 5, 70, 1000]), min_size=1, max_size=60)
seeds = st.integers(0, 2**32 - 1)


def serve(n, groups=None, **options):
    """Rows that differ from their positions, so that mixing the two up shows."""
    rows = 1000 + 2 * np.arange(n)
    return PlateBatches(rows, None if groups is None else np.array(groups), **options)


def members(batches, groups):
    """Group ids of the rows of each batch."""
    return [[groups[(row - 1000) // 2] for row in batch] for batch in batches]


def assert_every_row_once(batches, n):
    assert sorted(row for batch in batches for row in batch) == [1000 + 2 * i for i in range(n)]


@few
@given(n=st.integers(1, 80), batch_size=st.integers(1, 90), seed=seeds)
def test_random_batches_are_few_nearly_equal_and_complete(n, batch_size, seed):
    sampler = serve(n, batch_size=batch_size, seed=seed)
    batches = list(sampler)
    sizes = [len(b) for b in batches]
    assert_every_row_once(batches, n)
    assert len(sampler) == len(batches) == -(-n // batch_size)
    assert max(sizes) - min(sizes) <= 1
    assert all(b.dtype == np.int64 for b in batches)


@few
@given(
    groups=ids,
    batch_size=st.none() | st.integers(1, 30),
    parts=st.none() | st.integers(1, 9),
    shuffle=st.booleans(),
    seed=seeds,
)
def test_batches_of_one_group_cut_it_into_as_few_nearly_equal_parts_as_both_limits_need(
    groups, batch_size, parts, shuffle, seed
):
    sampler = serve(len(groups), groups, batch_size=batch_size, parts=parts, shuffle=shuffle, seed=seed)
    batches = list(sampler)
    assert_every_row_once(batches, len(groups))
    assert len(sampler) == len(batches)
    found = members(batches, groups)
    assert all(len(set(m)) == 1 for m in found)
    for group, n in Counter(groups).items():
        sizes = [len(m) for m in found if m[0] == group]
        wanted = next(k for k in range(1, n + 1) if k == n or (k >= (parts or 1) and n <= k * (batch_size or n)))
        assert len(sizes) == wanted
        assert max(sizes) - min(sizes) <= 1


@few
@given(data=st.data(), groups=ids, parts=st.none() | st.integers(1, 9), shuffle=st.booleans(), seed=seeds)
def test_several_groups_meet_in_a_batch_within_all_bounds(data, groups, parts, shuffle, seed):
    m = data.draw(st.integers(1, len(set(groups))))
    batch_size = data.draw(st.none() | st.integers(m, 40))
    sampler = serve(len(groups), groups, batch_size=batch_size, max_groups=m, parts=parts, shuffle=shuffle, seed=seed)
    batches = list(sampler)
    assert_every_row_once(batches, len(groups))
    assert len(sampler) == len(batches)
    found = [Counter(b) for b in members(batches, groups)]
    in_batch = [len(c) for c in found]
    assert max(in_batch) <= m
    assert max(in_batch) - min(in_batch) <= 1
    if batch_size is not None:
        assert max(n for c in found for n in c.values()) <= batch_size // m
        assert max(map(len, batches)) <= batch_size
    batches_of = Counter(g for c in found for g in c)  # in how many batches each group is = its number of parts
    assert len(batches) == max(-(-sum(in_batch) // m), max(batches_of.values()))
    for group, n in Counter(groups).items():
        sizes = [c[group] for c in found if group in c]
        share = batch_size // m if batch_size else n
        assert max(sizes) - min(sizes) <= 1
        assert len(sizes) == min(n, max(parts or 1, -(-n // share)))


def slow_epoch(rows, groups, seed, epoch, *, batch_size=None, max_groups=1, parts=1, controls=None, num_controls=0):
    """The batches of an epoch from lists and loops, its random numbers drawn in the order of the sampler."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    is_control = controls if num_controls else [False] * len(rows)
    treated = [i for i in range(len(rows)) if not is_control[i]]
    names = sorted({groups[i] for i in treated})
    others = [i for i in range(len(rows)) if is_control[i] and groups[i] in names]
    treated, others = ([kind[i] for i in rng.permutation(len(kind))] for kind in (treated, others))

    parts_of = {}
    for name in names:
        mine, own = ([i for i in kind if groups[i] == name] for kind in (treated, others))
        circle, quota = itertools.cycle(own), min(num_controls, len(own))
        room = batch_size // max_groups - num_controls if batch_size else len(mine)
        wanted = min(len(mine), max(parts, -(-len(mine) // room)))
        parts_of[name] = [[*p, *itertools.islice(circle, quota)] for p in np.array_split(mine, wanted)]

    sequence = [(names[g], part) for g in rng.permutation(len(names)) for part in parts_of[names[g]]]
    width = max(-(-len(sequence) // max_groups), max(map(len, parts_of.values())))
    batches = [[] for _ in range(width)]
    columns = rng.permutation(width).tolist()
    for begin in range(0, len(sequence), width):
        if begin:
            running_on = sequence[begin][0]
            before = zip(columns, sequence[begin - width : begin], strict=True)
            taken = [column for column, (name, _) in before if name == running_on]
            needed = sum(name == running_on for name, _ in sequence[begin:])
            free = rng.permutation([column for column in columns if column not in taken]).tolist()
            columns = free[:needed] + rng.permutation(free[needed:] + taken).tolist()
        for column, (_, part) in zip(columns, sequence[begin : begin + width], strict=False):
            batches[column] += part
    return [[int(rows[i]) for i in batch] for batch in batches]


@few
@given(
    data=st.data(),
    groups=ids,
    parts=st.integers(1, 9),
    quota=st.integers(0, 3),
    epoch=st.integers(0, 1000),
    seed=seeds,
)
def test_every_batch_is_that_of_a_slow_reference(data, groups, parts, quota, epoch, seed):
    groups = groups + sorted(set(groups)) * 2  # every group gets rows of both kinds
    controls = np.array(data.draw(st.lists(st.booleans(), min_size=len(groups), max_size=len(groups))))
    for group in set(groups):
        controls[np.flatnonzero(np.array(groups) == group)[-2:]] = [True, False]
    m = data.draw(st.integers(1, len(set(groups))))
    batch_size = data.draw(st.none() | st.integers(m * (quota + 1), m * (quota + 1) + 20))
    options = {"batch_size": batch_size, "max_groups": m, "parts": parts, "controls": controls, "num_controls": quota}
    sampler = serve(len(groups), groups, seed=seed, **options)
    sampler.set_epoch(epoch)
    assert as_lists(sampler) == slow_epoch(sampler.rows, groups, seed, epoch, **options)


def test_the_batches_of_a_seed_stay_what_they_were():
    controls = np.arange(14) % 5 == 0
    sampler = serve(14, [0, 1] * 7, batch_size=6, max_groups=2, controls=controls, num_controls=1, seed=3)
    assert as_lists(sampler) == [
        [1006, 1018, 1010, 1024, 1012, 1000],
        [1002, 1022, 1010, 1016, 1004, 1020],
        [1014, 1026, 1010, 1008, 1020],
    ]


def test_which_groups_meet_is_random():
    groups = np.repeat(np.arange(6), 10)
    sampler = serve(60, groups, batch_size=4, max_groups=2)
    meetings = Counter()
    for epoch in range(40):
        sampler.set_epoch(epoch)
        meetings.update(frozenset(m) for m in members(sampler, groups))
    assert len(meetings) == 15  # all pairs
    # 15 batches an epoch over 40 epochs: 40 meetings expected of each pair
    assert min(meetings.values()) > 20
    assert max(meetings.values()) < 60


@few
@given(data=st.data(), groups=ids, quota=st.integers(1, 5), parts=st.none() | st.integers(1, 5), seed=seeds)
def test_a_quota_of_controls_rides_along_with_every_part(data, groups, quota, parts, seed):
    groups = groups + sorted(set(groups)) * 2  # every group gets rows of both kinds
    n = len(groups)
    controls = np.array([*data.draw(st.lists(st.booleans(), min_size=n, max_size=n))])
    for group in set(groups):
        last = [i for i in range(n) if groups[i] == group][-2:]
        controls[last] = [True, False]
    m = data.draw(st.integers(1, len(set(groups))))
    batch_size = data.draw(st.none() | st.integers(m * (quota + 1), m * (quota + 1) + 20))
    sampler = serve(
        n, groups, batch_size=batch_size, max_groups=m, parts=parts, controls=controls, num_controls=quota, seed=seed
    )
    batches = list(sampler)
    assert len(sampler) == len(batches)
    uses = Counter()
    served = []
    for batch in batches:
        assert batch_size is None or len(batch) <= batch_size
        assert len(set(batch)) == len(batch)
        places = [(row - 1000) // 2 for row in batch]
        perturbed = {groups[i] for i in places if not controls[i]}
        assert {groups[i] for i in places} == perturbed
        assert len(perturbed) <= m
        for group in perturbed:
            here = [i for i in places if controls[i] and groups[i] == group]
            available = sum(1 for i in range(n) if controls[i] and groups[i] == group)
            assert len(here) == min(quota, available)
            uses.update(here)
        served += [i for i in places if not controls[i]]
    assert sorted(served) == [i for i in range(n) if not controls[i]]
    for group in set(groups):
        of_group = [uses[i] for i in range(n) if controls[i] and groups[i] == group]
        assert max(of_group) - min(of_group) <= 1


@pytest.mark.parametrize("quota", [0, 3])
def test_rows_of_a_group_come_one_after_the_other_in_a_batch(quota):
    """Batch norm of several plates then takes its statistics of views of the batch, and copies nothing."""
    groups = np.random.default_rng(0).integers(0, 6, 300)
    controls = np.arange(300) % 5 == 0
    for batch in PlateBatches(
        np.arange(300), groups, batch_size=64, max_groups=4, controls=controls, num_controls=quota
    ):
        met = [group for group, _ in itertools.groupby(groups[batch])]
        assert len(met) == len(set(met)) > 1


def test_a_quota_leaves_out_groups_of_controls_only():
    sampler = serve(6, [0, 0, 7, 7, 9, 9], controls=np.array([1, 0, 1, 1, 1, 0]), num_controls=1)
    assert sorted(sorted(b.tolist()) for b in sampler) == [[1000, 1002], [1008, 1010]]


def test_without_a_quota_controls_are_rows_like_others():
    batches = list(serve(4, [0, 0, 1, 1], controls=np.array([True] * 4)))
    assert_every_row_once(batches, 4)


def test_the_quota_of_controls_is_random_over_epochs():
    controls = np.arange(20) < 10
    sampler = serve(20, [3] * 20, controls=controls, num_controls=2)
    drawn = set()
    for epoch in range(60):
        sampler.set_epoch(epoch)
        drawn |= {tuple(sorted(row for row in batch if row < 1020)) for batch in sampler}
    assert len(drawn) > 25  # of 45 pairs


@few
@given(
    groups=st.none() | ids,
    n=st.integers(1, 60),
    world=st.integers(1, 7),
    shuffle=st.booleans(),
    epoch=st.integers(0, 1000),
    seed=seeds,
)
def test_ranks_share_out_the_same_batches(groups, n, world, shuffle, epoch, seed):
    options = {"batch_size": 4, "shuffle": shuffle, "seed": seed}
    n = n if groups is None else len(groups)
    whole = serve(n, groups, **options)
    whole.set_epoch(epoch)
    batches = [b.tolist() for b in whole]
    shares = []
    for rank in range(world):
        sampler = serve(n, groups, rank=rank, world_size=world, **options)
        sampler.set_epoch(epoch)
        shares.append([b.tolist() for b in sampler])
        assert len(sampler) == len(shares[-1])
    dealt = [shares[i % world][i // world] for i in range(sum(map(len, shares)))]
    assert dealt[: len(batches)] == batches
    if shuffle:
        assert len({len(s) for s in shares}) == 1
        extra = dealt[len(batches) :]
        assert len(extra) < world
        assert extra == [batches[i % len(batches)] for i in range(len(extra))]
    else:
        assert len(dealt) == len(batches)


@few
@given(groups=ids, start=st.integers(0, 30), world=st.integers(1, 3), shuffle=st.booleans(), seed=seeds)
def test_starting_within_an_epoch_yields_the_rest_of_it(groups, start, world, shuffle, seed):
    for rank in range(world):
        sampler = serve(len(groups), groups, batch_size=3, shuffle=shuffle, seed=seed, rank=rank, world_size=world)
        sampler.set_epoch(5)
        whole = [b.tolist() for b in sampler]
        if start > len(whole):
            with pytest.raises(ConfigError, match=f"batch {start} of an epoch of {len(whole)}"):
                sampler.set_epoch(5, start)
            continue
        sampler.set_epoch(5, start)
        assert len(sampler) == len(whole) - start
        assert [b.tolist() for b in sampler] == whole[start:]
        sampler.set_epoch(6)
        assert len(sampler) == len(whole)


def as_lists(sampler):
    return [b.tolist() for b in sampler]


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 7},
        {"groups": np.arange(50) % 4},
        {"groups": np.arange(50) % 4, "max_groups": 3, "batch_size": 9},
        {"groups": np.arange(50) % 4, "controls": np.arange(50) % 3 == 0, "num_controls": 2, "parts": 2},
    ],
)
def test_order_depends_on_seed_and_epoch_alone(options):
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    sampler = serve(50, seed=3, **options)
    sampler.set_epoch(2)
    batches = as_lists(sampler)
    assert as_lists(sampler) == batches  # twice the same
    assert random.getstate() == before[0]
    assert pickle.dumps(np.random.get_state()) == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])

    random.seed(2)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    again = serve(50, seed=3, **options)
    assert as_lists(again) != batches  # epoch 0
    again.set_epoch(7)
    as_lists(again)
    again.set_epoch(2)
    assert as_lists(again) == batches  # no memory of other epochs
    other = serve(50, seed=4, **options)
    other.set_epoch(2)
    assert as_lists(other) != batches


def test_iterations_do_not_disturb_each_other():
    sampler = serve(20, [0, 1] * 10, batch_size=3)
    expected = as_lists(sampler)
    first = iter(sampler)
    got = [next(first).tolist()]
    sampler.set_epoch(1, start=2)
    second = as_lists(sampler)
    got += [b.tolist() for b in first]
    assert got == expected
    assert second != expected[2:]


def test_without_shuffle_everything_ascends_at_every_epoch():
    groups = [5, 2, 5, 2, 5, 2, 2]
    sampler = serve(7, groups, batch_size=3, shuffle=False)
    expected = [[1002, 1006], [1010, 1012], [1000, 1004, 1008]]
    assert as_lists(sampler) == expected
    sampler.set_epoch(9)
    assert as_lists(sampler) == expected
    assert as_lists(serve(5, batch_size=2, shuffle=False)) == [[1000, 1002], [1004, 1006], [1008]]
    together = serve(7, groups, max_groups=2, shuffle=False)
    assert as_lists(together) == [[1002, 1006, 1010, 1012, 1000, 1004, 1008]]


def test_missing_plates_single_images_and_uneven_plates():
    groups = [17] * 9 + [2] + [400] * 3
    sampler = serve(13, groups, batch_size=4, shuffle=False)
    assert [m[0] for m in members(sampler, groups)] == [2, 17, 17, 17, 400]
    assert [len(b) for b in sampler] == [1, 3, 3, 3, 3]


def test_a_dominant_plate_meets_the_small_ones_evenly():
    groups = [0] * 40 + [1, 2, 3, 4]
    batches = members(serve(44, groups, batch_size=8, max_groups=2), groups)
    assert len(batches) == 10  # 40 rows of plate 0, 4 at a time
    assert all(Counter(b)[0] == 4 for b in batches)
    assert sorted(g for b in batches for g in set(b) - {0}) == [1, 2, 3, 4]


class Rows(Dataset):
    def __getitem__(self, rows):
        return torch.from_numpy(rows)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_serves_a_data_loader_and_is_left_alone_by_fabric(num_workers):
    sampler = serve(20, [0, 1] * 10, batch_size=4)
    loader = DataLoader(Rows(), sampler=sampler, batch_size=None, num_workers=num_workers)
    assert len(loader) == len(sampler)
    assert [b.tolist() for b in loader] == as_lists(sampler)
    assert not isinstance(sampler, BatchSampler)
    assert not hasattr(sampler, "batch_size")
    assert not hasattr(sampler, "drop_last")


@pytest.mark.parametrize(
    ("options", "advice", "words"),
    [
        ({"groups": [0, 0, 1, 1], "max_groups": 3}, "max_groups", ["3", "2 groups", "at most 2"]),
        ({"groups": [0, 0, 1, 1], "batch_size": 1, "max_groups": 2}, "batch_size", ["1", "at least 2"]),
        (
            {"groups": [0, 0, 1, 1], "batch_size": 4, "controls": [True, False] * 2, "num_controls": 4},
            "batch_size",
            ["4", "at least 5"],
        ),
        ({"batch_size": 0}, "batch_size", ["0", "1 or more"]),
        ({"groups": [0] * 4, "max_groups": 0}, "max_groups", ["0", "1 or more"]),
        ({"groups": [0] * 4, "parts": 0}, "parts", ["0", "1 or more"]),
        ({"groups": [0] * 4, "num_controls": -1}, "num_controls", ["-1", "0 or more"]),
        ({"batch_size": 2, "seed": -5}, "seed", ["-5", "0 or more"]),
        ({}, "batch_size", ["size", "group"]),
        ({"batch_size": 2, "max_groups": 2}, "max_groups", ["2", "not grouped"]),
        ({"batch_size": 2, "parts": 1}, "parts", ["1", "not grouped"]),
        ({"batch_size": 2, "num_controls": 1}, "num_controls", ["1", "not grouped"]),
        ({"batch_size": 2, "rank": 2, "world_size": 2}, None, ["rank 2", "2 processes"]),
    ],
)
def test_contradictory_numbers_are_refused_in_one_line(options, advice, words):
    with pytest.raises(ConfigError) as error:
        serve(4, **options)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.advice == advice


@few
@given(
    groups=ids, world=st.integers(1, 9), size=st.none() | st.integers(1, 5), shuffle=st.booleans(), mixed=st.booleans()
)
def test_ranks_evaluate_the_batches_of_one_process_each_once(groups, world, size, shuffle, mixed):
    groups = np.array(groups)
    whole = serve(len(groups), None if mixed else groups, batch_size=size or (3 if mixed else None), shuffle=shuffle)
    of_row = np.zeros(whole.served.max() + 1, int)
    of_row[whole.served] = groups
    batches = [batch.tolist() for batch in whole]
    shares = [ShareOfRank(whole, None if mixed else of_row, rank, world) for rank in range(world)]
    found = [[batch.tolist() for batch in share] for share in shares]
    assert sorted(itertools.chain(*found)) == sorted(batches)
    for share, own in zip(shares, found, strict=True):
        assert len(share) == len(own) == len(share.passed)
        assert [batch for batch in batches if batch in own] == own  # in their order
        places = [batches.index(batch) for batch in own]
        before = [[len(one) for one in batches[i + 1 : j]] for i, j in itertools.pairwise([-1, *places])]
        assert share.passed == before
    if not mixed:
        of_rank = [{int(g) for batch in own for g in of_row[batch]} for own in found]
        assert sum(map(len, of_rank)) == len(set(groups.tolist()))  # whole groups
        assert max(map(len, of_rank)) - min(map(len, of_rank)) <= 1


def test_data_that_cannot_be_served_is_refused_by_name():
    with pytest.raises(DataError, match="no rows"):
        serve(0, batch_size=4)
    with pytest.raises(DataError, match=r"plate id\) 17 has no control row"):
        serve(4, [3, 3, 17, 17], controls=np.array([True, False, False, False]), num_controls=1)
    with pytest.raises(DataError, match="all 2 rows are controls"):
        serve(2, [3, 3], controls=np.array([True, True]), num_controls=1)
    with pytest.raises(ValueError, match="3 groups"):
        serve(4, [1, 2, 3])


def test_what_is_served_is_what_batches_are_made_of():
    controls = np.arange(12) % 4 == 0
    sampler = serve(12, [0] * 6 + [1] * 6, controls=controls, num_controls=1, batch_size=3)
    assert set(sampler.served.tolist()) == {row for batch in sampler for row in batch.tolist()}
