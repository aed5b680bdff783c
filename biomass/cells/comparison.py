"""How nuclei compare with others of the same fields: matched one to one, within some pixels."""

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import cKDTree

from biomass.cells.fields import Nuclei
from biomass.errors import DataError
from biomass.screen import Screen


def match_centres(
    fields: np.ndarray, centres: np.ndarray, other_fields: np.ndarray, others: np.ndarray, within: float = 8.0
) -> np.ndarray:
    """Pair as many points as possible with points of another set, each at most once, in the same field.

    Args:
        fields: (N,) the field of every point, a number.
        centres: (N, 2) pixels.
        other_fields: (M,) likewise of the other set.
        others: (M, 2) pixels.
        within: how far the points of a pair may be apart, pixels.

    Returns:
        (N,) int64, the partner of every point, a row of the other set; -1 where there is none.

    >>> match_centres([0, 0, 1], [[0, 0], [0, 6], [0, 0]], [0, 0], [[0, 3], [0, 12]], within=7).tolist()
    [0, 1, -1]
    """
    if not len(centres) or not len(others):
        return np.full(len(centres), -1, np.int64)
    apart = 4 * within + 1  # one tree for all fields, which lie apart along a third axis
    trees = [
        cKDTree(np.column_stack([np.asarray(field, np.float64) * apart, points]))
        for field, points in ((fields, centres), (other_fields, others))
    ]
    near = trees[0].sparse_distance_matrix(trees[1], within, output_type="coo_matrix")
    pairs = csr_matrix((np.ones(len(near.row)), (near.row, near.col)), shape=(len(centres), len(others)))
    return np.asarray(maximum_bipartite_matching(pairs, perm_type="column"), np.int64)


def compare_nuclei(screen: Screen, nuclei: Nuclei, given: Nuclei, within: float = 8.0) -> pd.DataFrame:
    """Compare nuclei with given ones, in the fields that both have looked at.

    Args:
        screen: the fields.
        nuclei: of the fields.
        given: those that count as right.
        within: how far from its centre a nucleus counts as found, pixels.

    Returns:
        A row a plate, and one for all of them: ``plate``, number of ``fields``, of ``given`` nuclei, of nuclei
        (``found``), ``recall`` and ``precision`` (see :func:`match_centres`), and ``correlation`` of the two numbers
        of nuclei of a field (Pearson's; missing where they do not vary).

    Raises:
        DataError: they have no field in common.
    """
    both = np.intersect1d(nuclei.fields, given.fields)
    if not len(both):
        raise DataError("the nuclei to compare with are of other fields: correct the names of plates, wells and sites")
    ours, theirs = (one.table[np.isin(one.table["image"], both)] for one in (nuclei, given))
    points = [(t["image"].to_numpy(np.int64), t[["y", "x"]].to_numpy(np.float64)) for t in (ours, theirs)]
    hits = match_centres(*points[0], *points[1], within) >= 0
    n = len(screen)
    counts = [np.bincount(field, minlength=n) for field in (points[0][0], points[1][0], points[0][0][hits])]
    table = pd.DataFrame(dict(zip(("found", "given", "hits"), counts, strict=True))).iloc[both]
    table["plate"] = [screen.plate_names[plate] for plate in screen.plate_ids[both]]
    rows = [_compare(str(plate), rows) for plate, rows in table.groupby("plate", sort=True)]
    return pd.DataFrame([*rows, _compare("all", table)])


def _compare(plate: str, rows: pd.DataFrame) -> dict[str, object]:
    found, given, hits = (int(rows[column].sum()) for column in ("found", "given", "hits"))
    vary = bool((rows[["found", "given"]].max() > rows[["found", "given"]].min()).all())
    return {
        "plate": plate,
        "fields": len(rows),
        "given": given,
        "found": found,
        "recall": hits / given if given else np.nan,
        "precision": hits / found if found else np.nan,
        "correlation": np.corrcoef(rows["found"], rows["given"])[0, 1] if vary else np.nan,
    }
