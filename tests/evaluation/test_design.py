"""What a plate map allows: its design by slow references, measured curves, and the verdict on known designs."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2_contingency

from biomass.errors import BiomassError, ConfigError, DataError
from biomass.evaluation.curves import COLUMNS, Curves, read_curves
from biomass.evaluation.design import (
    composition_shift,
    confounding,
    count_wells,
    cramers_v,
    describe_groups,
    effective_wells,
    find_references,
    places,
    plate_format,
    well_table,
)
from biomass.evaluation.page import render
from biomass.evaluation.verdict import WAYS, Group, Verdict, call, group_wells, judge, recommend, warning
from biomass.screen import COLUMNS as SCREEN_COLUMNS
from biomass.screen import PLATE, Screen, make_screen
from biomass.simulation import rxrx1
from biomass.simulation.plate_map import Look, simulate_plate_map

RXRX1 = rxrx1.Design(experiments=6, treatments=1108, positive_controls=30, wells=277, negative_wells=1)


def dirichlet_wells(
    groups: int, wells: int, classes: int, alpha: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Group and class of wells that are drawn from the shares of their group."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(classes, alpha), groups)
    drawn = [rng.choice(classes, wells, p=share) for share in shares]
    return np.repeat(np.arange(groups), wells), np.concatenate(drawn)


def plate_map(
    plates: int, treated: list[list[str]], negative: int = 0, positive: int = 0, week: int | None = None
) -> pd.DataFrame:
    """A plate map: plate p holds the treatments ``treated[p]``, and controls; ``week`` plates an experiment."""
    rows = []
    for p in range(plates):
        held = [(t, t, "") for t in treated[p % len(treated)]]
        held += [("DMSO", "DMSO", "negative")] * negative + [("taxol", "taxol", "positive")] * positive
        experiment = "" if week is None else f"week {p // week}"
        rows += [
            (experiment, f"P{p}", f"{'ABCDEFGHIJKLMNOP'[i // 24]}{i % 24 + 1:02d}", *h) for i, h in enumerate(held)
        ]
    table = pd.DataFrame(rows, columns=["experiment", "plate", "well", "treatment", "label", "control"])
    return table.assign(images=1)


def screen_of(wells: pd.DataFrame) -> Screen:
    classes = sorted(wells["label"].unique())
    table = pd.DataFrame(dict.fromkeys(SCREEN_COLUMNS, [""] * len(wells))).assign(
        **{column: wells[column].to_numpy() for column in ("experiment", "plate", "well", "control")}
    )
    return make_screen(table.assign(label=pd.Categorical(wells["label"], classes).codes), None, classes)  # type: ignore[arg-type]


# --- groups -----------------------------------------------------------------------------------------------------------


def test_groups_are_described_as_a_slow_count_does() -> None:
    rng = np.random.default_rng(3)
    n = 300
    wells = pd.DataFrame(
        {
            "experiment": rng.choice(["e1", "e2"], n),
            "plate": rng.choice(["1", "2", "3"], n),
            "well": "",
            "treatment": rng.choice([f"t{i}" for i in range(40)], n),
            "control": rng.choice(["", "", "negative", "positive"], n),
            "images": rng.integers(1, 5, n),
        }
    )
    wells["label"] = wells["treatment"].str[:2]
    table = describe_groups(wells)
    treated = wells[wells["control"] == ""]
    for row in table.itertuples():
        own = wells[(wells["experiment"] == row.experiment) & (wells["plate"] == row.plate)]
        here = own[own["control"] == ""]
        elsewhere = set(treated.drop(here.index)["treatment"])
        assert row.images == own["images"].sum()
        assert (row.wells, row.treated) == (len(own), len(here))
        assert (row.negative, row.positive) == tuple(
            (own["control"] == kind).sum() for kind in ("negative", "positive")
        )
        assert (row.treatments, row.classes) == (here["treatment"].nunique(), here["label"].nunique())
        assert row.shared == pytest.approx(here["treatment"].isin(elsewhere).mean())
        assert row.coverage == pytest.approx(here["label"].nunique() / treated["label"].nunique())
    assert len(table) == 6


def test_a_plate_without_treated_wells_has_no_shares() -> None:
    wells = pd.concat([plate_map(1, [["a"]], negative=2), plate_map(1, [[]], negative=2).assign(plate="empty")])
    table = describe_groups(wells, ["plate"]).set_index("plate")
    assert np.isnan(table.loc["empty", "shared"])
    assert np.isnan(table.loc["empty", "coverage"])
    assert table.loc["P0", "coverage"] == 1


def test_images_of_a_well_are_one_well_and_without_wells_each_counts() -> None:
    rows = pd.DataFrame({"plate": ["P"] * 3, "well": ["A01", "A01", "A02"], "label": ["x"] * 3})
    assert count_wells(rows)["images"].tolist() == [2, 1]
    assert count_wells(rows.assign(well=""))["images"].tolist() == [1, 1, 1]


# --- composition ------------------------------------------------------------------------------------------------------


def slow_shift(group: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """Distance and ρ, over all pairs of wells."""
    dense = pd.crosstab(group, label).to_numpy(float)
    n, q = dense.sum(1), dense.sum(0) / dense.sum()
    distance = np.average(np.abs(dense / n[:, None] - q).sum(1) / 2, weights=n)
    pairs = list(combinations(range(len(group)), 2))
    same = {g: [] for g in set(group)} | {"between": []}
    for i, j in pairs:
        same[group[i] if group[i] == group[j] else "between"].append(label[i] == label[j])
    several = [g for g in set(group) if same[g]]
    within = np.average([np.mean(same[g]) for g in several], weights=[(group == g).sum() for g in several])
    between = np.mean(same["between"])
    return float(distance), float((within - between) / (1 - between))


@pytest.mark.parametrize("seed", range(4))
def test_the_shift_is_that_of_all_pairs_of_wells(seed: int) -> None:
    rng = np.random.default_rng(seed)
    group, label = rng.choice(7, 60, p=rng.dirichlet(np.ones(7))), rng.choice(5, 60)
    shift = composition_shift(group, label)
    assert (shift.distance, shift.correlation) == pytest.approx(slow_shift(group, label))


@pytest.mark.parametrize("alpha", [0.05, 0.3, 2.0])
@pytest.mark.parametrize("wells", [8, 60])
def test_the_alpha_that_wells_were_drawn_with_is_found(alpha: float, wells: int) -> None:
    found = [composition_shift(*dirichlet_wells(400, wells, 12, alpha, seed)).alpha for seed in range(3)]
    assert np.mean(found) == pytest.approx(alpha, rel=0.1)


def test_wells_drawn_at_random_are_not_shifted_however_few_they_are() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(3000), 4)
    shift = composition_shift(group, rng.integers(0, 500, len(group)))
    assert abs(shift.correlation) < 0.002
    assert shift.distance > 0.95  # which is why the distance is not what is judged by


def test_names_and_the_order_of_wells_do_not_matter() -> None:
    group, label = dirichlet_wells(20, 10, 6, 0.5)
    order = np.random.default_rng(1).permutation(len(group))
    renamed = composition_shift([f"plate {g}" for g in group[order]], [f"moa {c}" for c in label[order]])
    assert renamed == pytest.approx(composition_shift(group, label))


@pytest.mark.parametrize(
    ("groups", "classes"), [([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [1, 1, 2]), ([1, 1, 2, 2], [5] * 4)]
)
def test_without_anything_to_compare_there_is_no_shift(groups: list[int], classes: list[int]) -> None:
    assert composition_shift(groups, classes)[1:3] == (0.0, np.inf)


def test_effective_wells_have_the_variance_of_as_many_random_ones() -> None:
    """The mean of the classes' effects over a group varies as over that many wells of any groups."""
    effects = np.random.default_rng(5).standard_normal(12)
    effects -= effects.mean()
    group, label = dirichlet_wells(4000, 24, 12, 0.3)
    rho = 1 / (12 * 0.3 + 1)
    for controls in (0, 12):  # which have effect 0
        means = np.bincount(group, effects[label]) / (24 + controls)
        expected = effects.var() / effective_wells([24], [controls], rho)[0]
        assert means.var() == pytest.approx(expected, rel=0.1)


def test_effective_wells_are_never_more_than_there_are() -> None:
    assert effective_wells([10, 0, 5], [0, 6, 100], 0.0).tolist() == [10, 6, 105]
    assert effective_wells([10, 1000], [0, 0], 1.0).tolist() == [1, 1]
    assert effective_wells([10], [0], -0.3).tolist() == [10]


# --- confounding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_cramers_v_is_that_of_the_dense_table(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 6, 120)
    b = np.where(rng.random(120) < 0.5, a % 4, rng.integers(0, 4, 120))
    dense = pd.crosstab(a, b).to_numpy()
    n, (r, k) = dense.sum(), dense.shape
    phi2 = max(0.0, chi2_contingency(dense, correction=False).statistic / n - (r - 1) * (k - 1) / (n - 1))
    least = min(r - (r - 1) ** 2 / (n - 1), k - (k - 1) ** 2 / (n - 1)) - 1
    assert cramers_v(a, b) == pytest.approx(np.sqrt(phi2 / least))
    assert cramers_v(b, a) == pytest.approx(cramers_v(a, b))


def test_independent_treatments_and_plates_have_no_v_where_plain_v_is_large() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 200, 1000), rng.integers(0, 50, 1000)
    dense = pd.crosstab(a, b).to_numpy()
    plain = np.sqrt(chi2_contingency(dense, correction=False).statistic / 1000 / (min(dense.shape) - 1))
    assert plain > 0.4
    assert cramers_v(a, b) < 0.1


@pytest.mark.parametrize(("a", "b"), [("xx", "yz"), ("abc", "xyx"), ("a", "b"), ("", "")])
def test_what_cannot_be_told_is_not_a_number(a: str, b: str) -> None:
    assert np.isnan(cramers_v(list(a), list(b)))


def test_treatments_that_stay_in_their_places_are_seen() -> None:
    fixed = plate_map(4, [[f"t{i}" for i in range(90)]])
    moved = fixed.copy()
    rng = np.random.default_rng(0)
    for rows in fixed.groupby("plate").groups.values():
        moved.loc[rows, "treatment"] = rng.permutation(fixed.loc[rows, "treatment"])
    assert confounding(fixed, 384)["column"] > 0.85
    assert confounding(fixed, 384)["group"] == 0
    assert confounding(moved, 384)["column"] < 0.2
    assert confounding(moved, None).keys() == {"group"}


# --- plates and references --------------------------------------------------------------------------------------------


def test_places_and_formats() -> None:
    rows, columns = places(["A01", "Z10", "AA01", "AF48"])
    assert rows.tolist() == [0, 25, 26, 31]
    assert columns.tolist() == [0, 9, 0, 47]
    assert [plate_format([w]) for w in ("H12", "I01", "A13", "P24", "Q01", "A25")] == [96, 384, 384, 384, 1536, 1536]
    assert plate_format(["A01"], 1536) == 1536


@pytest.mark.parametrize(
    ("wells", "size", "said"),
    [
        (["A01", "I13"], 96, "I13"),
        (["A01", "pool 3"], None, "pool 3"),
        (["A01"], 100, "100"),
        (["A01", ""], None, "''"),
    ],
)
def test_wells_that_are_none_are_named(wells: list[str], size: int | None, said: str) -> None:
    with pytest.raises(BiomassError, match=said):
        plate_format(wells, size)


def test_references_are_on_nearly_all_plates_where_others_are_on_few() -> None:
    own = [[f"t{p}-{i}" for i in range(5)] + ["reference"] * (p != 3) for p in range(9)]
    assert find_references(plate_map(9, own, negative=3)) == ["reference"]
    assert find_references(plate_map(9, [["a", "b", "c"]])) == []  # all are on all
    assert find_references(plate_map(3, own)) == []  # too few plates to tell
    few = [[*content[:-1], "reference"] if p < 6 else content[:-1] for p, content in enumerate(own)]
    assert find_references(plate_map(9, few)) == []


def test_the_wells_of_a_screen() -> None:
    screen = screen_of(plate_map(2, [["a", "a", "b"]], negative=1))
    table = well_table(screen)
    assert table["control"].tolist() == ["", "", "", "negative"] * 2
    assert table["label"].tolist() == table["treatment"].tolist() == ["a", "a", "b", "DMSO"] * 2
    compounds = screen.table.assign(compound=[*"xxyz"] * 2, concentration=1)
    treated = well_table(Screen(compounds, None, screen.classes))["treatment"]  # type: ignore[arg-type]
    assert treated.tolist() == ["x 1", "x 1", "y 1", "z 1"] * 2
    with pytest.raises(ConfigError, match="weak"):
        well_table(screen, ["weak"])


# --- curves -----------------------------------------------------------------------------------------------------------


def curves(*rows: tuple[object, ...]) -> Curves:
    """Curves of ``(statistics, wells, alpha, controls, kind, accuracy, origin)`` with 12 classes."""
    columns = ["statistics", "wells", "alpha", "controls", "kind", "accuracy", "origin"]
    return Curves(pd.DataFrame(rows, columns=columns).assign(low=np.nan, high=np.nan, screens=1, classes=12))


BASE = ("running", np.nan, np.nan, np.nan, "", 0.4)


def test_a_measurement_is_found_again_whatever_the_unit_of_its_origin() -> None:
    one = curves((*BASE, "A"), ("plate", 64, np.inf, 16, "", 0.6, "A"))
    assert one.expect("plate", "", 64, 16, 0.0)[:4] == pytest.approx((1.5, 1.5, 1.5, 0.0))
    half = curves((*BASE[:-1], 0.2, "A"), ("plate", 64, np.inf, 16, "", 0.3, "A"))
    assert half.expect("plate", "", 64, 16, 0.0) == one.expect("plate", "", 64, 16, 0.0)
    assert one.expect("shrunk", "", 64, 16, 0.0) is None
    assert one.expect("running", "", 1, 0, 0.0).ratio == 1  # type: ignore[union-attr]


def test_nearer_measurements_count_more_and_distance_widens_the_interval() -> None:
    two = curves((*BASE, "A"), ("plate", 8, np.inf, 0, "", 0.2, "A"), ("plate", 64, np.inf, 0, "", 0.8, "A"))
    found = [two.expect("plate", "", n, 0, 0.0) for n in (2, 8, 12, 22, 40, 64, 512)]
    ratios = [one.ratio for one in found if one]
    assert ratios[1:6] == sorted(ratios[1:6])
    assert ratios[3] == pytest.approx(1.0, rel=0.1)  # halfway between 0.5 and 2
    assert [one.outside for one in found if one] == [True, False, False, True, False, False, True]
    far, near = found[-1], found[-2]
    assert far is not None
    assert near is not None
    assert far.high / far.low > near.high / near.low


def test_screens_that_disagree_widen_the_interval() -> None:
    same = curves((*BASE, "A"), (*BASE, "B"), *(("plate", 64, np.inf, 0, "", 0.6, o) for o in "AB"))
    apart = curves(
        (*BASE, "A"), (*BASE, "B"), *(("plate", 64, np.inf, 0, "", a, o) for a, o in ((0.3, "A"), (1.0, "B")))
    )
    a, b = (one.expect("plate", "", 64, 0, 0.0) for one in (same, apart))
    assert a is not None
    assert b is not None
    assert a.high == pytest.approx(a.low)
    assert b.low < 1 < b.high
    assert b.origins == pytest.approx(2)


def test_controls_of_the_other_kind_count_less() -> None:
    both = curves(
        (*BASE, "A"), ("controls", 64, np.inf, 8, "negative", 0.2, "A"), ("controls", 64, np.inf, 8, "all", 0.8, "A")
    )
    negative, positive = (both.expect("controls", kind, 64, 8, 0.0) for kind in ("negative", "all"))
    assert negative is not None
    assert positive is not None
    assert negative.ratio < 1 < positive.ratio


def test_intervals_hold_for_screens_that_are_left_out() -> None:
    """What is expected of each origin's measurements from those of all others: is the interval an 80 % one?"""
    whole = read_curves()
    inside, kept = [], []
    for origin in whole.measured["origin"].unique():
        others = Curves(whole.table[whole.table["origin"] != origin])
        for number, row in whole.measured[whole.measured["origin"] == origin].iterrows():
            wells, controls, alpha, classes = whole.table.loc[number, ["wells", "controls", "alpha", "classes"]]
            expected = others.expect(row["statistics"], row["kind"], wells, controls, 1 / (alpha * classes + 1))
            assert expected is not None
            inside.append(np.log(expected.low) <= row["log"] <= np.log(expected.high))
            if expected.low >= 1:  # safe
                kept.append(row["log"] >= 0)
    assert 0.7 < np.mean(inside) < 0.95
    assert len(kept) > 20
    assert np.mean(kept) > 0.9


def test_the_curves_of_the_package_are_whole() -> None:
    table = read_curves().table
    assert set(COLUMNS) <= set(table)
    assert read_curves().table["accuracy"].between(0, 1).all()
    assert {"plate", "controls", "balanced"} <= set(read_curves().words) <= {"running"} | {word for word, _ in WAYS}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["plate,8,inf,0,,0.5,,,1,12,A"], "'A'"),
        (["running,,,,,0.5,,,1,12,A", "plate,8,-1,0,,0.5,,,1,12,A"], "row 3.*'alpha'"),
        (["running,,,,,0.5,,,1,12,A", "plate,many,1,0,,0.5,,,1,12,A"], "row 3.*'wells'"),
        (["running,,,,,50,,,1,12,A"], "accuracy 50"),
    ],
)
def test_curves_that_are_none(tmp_path, lines: list[str], said: str) -> None:
    header = "statistics,wells,alpha,controls,kind,accuracy,low,high,screens,classes,origin"
    (tmp_path / "curves.csv").write_text("\n".join([header, *lines]))
    with pytest.raises(DataError, match=said):
        read_curves(tmp_path / "curves.csv")


# --- the verdict ------------------------------------------------------------------------------------------------------


def verdict_of(wells: pd.DataFrame) -> Verdict:
    return Verdict.on(wells)


def states(verdict: Verdict) -> dict[tuple[str, str, tuple[str, ...]], str]:
    return {(one.word, one.controls, one.by): one.state for one in verdict.judgements}


def few_classes_a_plate(seed: int = 0) -> pd.DataFrame:
    """Made like the real crops of BBBC021, by its numbers: weeks of six plates with three treated wells of one of a
    few classes, three wells of a reference on all plates, a negative control on every other one."""
    rng = np.random.default_rng(seed)
    parts = []
    for week in range(10):
        classes = rng.choice(12, 3, replace=False)
        for p in range(6):
            own = [f"c{rng.choice(classes)}-{week}"] * 3
            one = plate_map(1, [own], negative=int(p % 2 == 0), positive=3).assign(experiment=f"w{week}", plate=f"{p}")
            parts.append(one)
    wells = pd.concat(parts, ignore_index=True)
    return wells.assign(label=wells["treatment"].str.split("-").str[0])


def test_plates_with_few_classes_lose_and_all_controls_by_week_may_do_better_whatever_things_are_called() -> None:
    wells = few_classes_a_plate()
    verdict = verdict_of(wells)
    assert states(verdict)["plate", "", PLATE] == "fails"
    assert states(verdict)["controls", "negative", PLATE] == "fails"
    assert verdict.promising is not None
    assert call(verdict.promising) == "'balanced' (negative and positive) by experiment"
    renamed = wells.copy()
    for column in ("experiment", "plate", "treatment", "label"):
        renamed[column] = "n" + pd.Series(pd.factorize(wells[column])[0]).astype(str)
    assert [one.plain() for one in verdict_of(renamed).judgements] == [one.plain() for one in verdict.judgements]


def test_the_real_crops(real_data) -> None:
    table = pd.read_csv(real_data / "bbbc021_cells" / "manifest.csv", dtype=str)
    control = np.where(table["compound"] == "DMSO", "negative", "")
    control = np.where((table["compound"] == "taxol") & (table["concentration"] == "0.3"), "positive", control)
    columns = {"experiment": table["batch"], "treatment": table["compound"] + table["concentration"]}
    rows = table[["plate", "well"]].assign(**columns, label=table["moa"], control=control)
    verdict = verdict_of(count_wells(rows))
    assert states(verdict)["plate", "", PLATE] == "fails"
    assert call(verdict.best) == "'running'"  # the two splits that were measured disagree on all others
    assert verdict.promising is not None
    assert call(verdict.promising) == "'balanced' (negative and positive) by experiment"


def test_the_design_of_rxrx1_is_made_for_plates() -> None:
    table = rxrx1._metadata(RXRX1, rxrx1.lay_out(RXRX1)).astype(str)
    kinds = {"treatment": "", "positive_control": "positive", "negative_control": "negative"}
    columns = {"treatment": table["sirna"], "label": table["sirna"], "control": table["well_type"].map(kinds)}
    verdict = verdict_of(count_wells(table[["experiment", "plate", "well"]].assign(**columns)))
    assert verdict.size == 384
    assert states(verdict)["plate", "", PLATE] == "safe"
    assert call(verdict.best) == "'plate' by plate"
    assert all(value < 0.2 for value in verdict.confounded["plate"].values() if not np.isnan(value))
    assert verdict.groups[0].shift.distance == pytest.approx(0.75, abs=0.01)


def test_one_treatment_a_plate_needs_controls() -> None:
    wells = plate_map(12, [[f"t{p}"] * 88 for p in range(12)], negative=8)
    verdict = verdict_of(wells)
    assert states(verdict)["plate", "", PLATE] == "fails"
    assert verdict.best.word in ("controls", "balanced")
    assert verdict.confounded["plate"]["group"] == pytest.approx(1)
    assert any("plate (1.00)" in reason for reason in verdict.reasons())
    bare = verdict_of(wells[wells["control"] == ""])
    assert bare.best.word == "running"
    assert all(one.state in ("fails", "unknown") for one in bare.judgements[1:])


def test_the_number_of_controls_that_is_asked_for_makes_it_safe() -> None:
    treated = [[f"t{i % 20}" for i in range(30)]]
    judged = judge([Group.over(plate_map(8, treated, negative=2), PLATE)])
    asked = [one for one in judged if one.needed]
    assert asked
    for one in asked:
        assert one.needed is not None
        assert one.state != "safe"
        for number, state in ((one.needed, "safe"), (one.needed - 1, one.state)):
            again = judge([Group.over(plate_map(8, treated, negative=number), PLATE)])
            found = next(other for other in again if (other.word, other.controls) == (one.word, one.controls))
            assert (found.state == "safe") == (state == "safe")


def test_coarser_groups_are_those_between_a_plate_and_everything() -> None:
    treated = [["a", "b", "c"]]
    assert [g.by for g in group_wells(plate_map(6, treated, week=3))] == [PLATE, ("experiment",)]
    assert [g.by for g in group_wells(plate_map(6, treated, week=6))] == [PLATE]
    assert [g.by for g in group_wells(plate_map(6, treated, week=1))] == [PLATE]


def test_only_what_is_safe_and_can_be_taken_is_recommended() -> None:
    judged = verdict_of(few_classes_a_plate()).judgements
    risky = [one._replace(state="risky") if one.state == "safe" else one for one in judged]
    assert recommend(risky).word == "running"
    unheard = [one._replace(word="unheard of") if one.state == "safe" else one for one in judged]
    assert recommend(unheard).word == "running"


def test_a_map_of_controls_alone_is_refused() -> None:
    with pytest.raises(DataError, match="all 6 wells are controls"):
        verdict_of(plate_map(2, [[]], negative=3))


def test_the_page_says_what_was_judged() -> None:
    verdict = verdict_of(few_classes_a_plate())
    page = render("a screen", {"plate": "'plate'"}, ["a note"], verdict)
    assert max(map(len, page.splitlines())) <= 120
    for part in ("a screen", "Note: a note.", "VERDICT: take 'running'; try 'balanced'"):
        assert part in page
    for one in verdict.judgements:
        assert one.word in page
    drawn = [line for line in page.splitlines() if line.startswith("  A  ")]
    assert drawn[0].split()[1:8] == ["a", "a", "a", "-", "+", "+", "+"]


# --- the warning of a run ---------------------------------------------------------------------------------------------


def test_a_run_whose_statistics_do_not_fit_is_warned_in_one_line() -> None:
    screen = screen_of(few_classes_a_plate())
    line = warning(screen, "plate")
    assert line is not None
    assert "\n" not in line
    assert "'plate' by plate" in line
    assert "'balanced' (negative and positive) by experiment" in line
    assert "have no negative control" in (warning(screen, "controls") or "")
    for word, by, kind in (("running", PLATE, ""), ("calibrated", PLATE, ""), ("controls", ("experiment",), "all")):
        assert warning(screen, word, by, kind) is None


def test_a_run_whose_statistics_fit_is_not_warned() -> None:
    spread = screen_of(plate_map(8, [[f"t{i % 20}" for i in range(60)]], negative=16))
    assert warning(spread, "plate") is None
    assert warning(spread, "controls") is None
    nothing = screen_of(plate_map(4, [[]], negative=3))
    assert warning(nothing, "plate") is None


def test_a_simulated_plate_map_is_judged_as_the_map_is() -> None:
    wells = few_classes_a_plate()
    screen = simulate_plate_map(wells[wells["experiment"].isin(["w0", "w1", "w2"])], Look(size=48), workers=1)
    own = well_table(screen)
    assert describe_groups(own)["treated"].tolist() == [3] * 18
    assert warning(screen, "plate") is not None
