"""Nuclei compared with given ones, and neighbours in a crop, against slow references."""

import numpy as np
import pandas as pd
import pytest

from biomass.cells.comparison import compare_nuclei, match_centres
from biomass.cells.crops import count_neighbours
from biomass.cells.fields import Nuclei
from biomass.errors import DataError
from biomass.screen import VectorPixels, make_screen


def augment(near, partners, point, seen):
    """One step of Kuhn's algorithm."""
    for other in np.flatnonzero(near[point]):
        if other not in seen:
            seen.add(other)
            if other not in partners or augment(near, partners, partners[other], seen):
                partners[other] = point
                return True
    return False


def test_as_many_pairs_as_possible():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.uniform(0, 40, (30, 2)), rng.uniform(0, 40, (25, 2))
        fa, fb = rng.integers(0, 2, 30), rng.integers(0, 2, 25)
        near = (np.linalg.norm(a[:, None] - b[None], axis=2) <= 8) & (fa[:, None] == fb[None])
        partners: dict[int, int] = {}
        expected = sum(augment(near, partners, point, set()) for point in range(30))
        found = match_centres(fa, a, fb, b, 8)
        hit = found[found >= 0]
        assert len(hit) == len(set(hit.tolist())) == expected
        assert near[np.flatnonzero(found >= 0), hit].all()


@pytest.mark.parametrize("size", [7, 8, 21])
def test_neighbours_are_those_of_a_loop(size):
    rng = np.random.default_rng(1)
    field, centres = rng.integers(0, 3, 150), rng.uniform(0, 60, (150, 2))
    expected = np.zeros(150, int)
    for i, (y, x) in enumerate(centres):
        top, left = round(y) - size // 2, round(x) - size // 2
        for j, (other_y, other_x) in enumerate(centres):
            inside = top <= round(other_y) < top + size and left <= round(other_x) < left + size
            expected[i] += i != j and field[i] == field[j] and inside
    assert expected.max() > 1
    np.testing.assert_array_equal(count_neighbours(field, centres, size), expected)


def nuclei_of(rows, fields):
    return Nuclei(pd.DataFrame(rows, columns=["image", "y", "x"]).assign(area=1.0), np.array(fields))


def test_recall_and_precision_by_plate():
    table = pd.DataFrame(
        {"experiment": "E", "plate": ["P1"] * 8 + ["P2"] * 8, "well": [f"A{i:02d}" for i in range(1, 17)]}
    )
    table = table.assign(site=1, cell_type="", label=0, split="", control="")
    screen = make_screen(table, VectorPixels(np.zeros((16, 1, 9, 9))), ["one"])
    ours = nuclei_of([(0, 10, 10), (0, 50, 50), (8, 5, 5), (9, 7, 7), (10, 1, 1)], [0, 8, 9, 10])
    theirs = nuclei_of([(0, 12, 10), (8, 40, 40), (8, 5, 9), (9, 7, 7), (1, 3, 3)], [0, 1, 8, 9])
    table = compare_nuclei(screen, ours, theirs, 5).set_index("plate")
    assert table.loc["E/P1", ["fields", "given", "found", "recall", "precision"]].tolist() == [1, 1, 2, 1.0, 0.5]
    assert table.loc["E/P2", ["fields", "given", "found"]].tolist() == [2, 3, 2]
    assert table.loc["E/P2", "recall"] == pytest.approx(2 / 3)
    assert table.loc["all", "precision"] == pytest.approx(3 / 4)
    with pytest.raises(DataError, match="other fields"):
        compare_nuclei(screen, ours, nuclei_of([(3, 1, 1)], [3]))
