"""Which statistics a plate map allows: a verdict before the screen, from the design and from measured curves.

Every word for statistics is judged by its expected accuracy relative to running averages of plain training:

``safe``
    the 80 % interval lies above running averages;
``fails``
    it cannot be taken, or is expected to lose a tenth of the accuracy or more;
``risky``
    everything between, also what lies too far from anything that was measured;
``unknown``
    the word was not measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from biomass.errors import DataError
from biomass.evaluation.curves import Curves, Expected, read_curves
from biomass.evaluation.design import (
    Shift,
    composition_shift,
    confounding,
    describe_groups,
    effective_wells,
    plate_format,
    well_table,
)
from biomass.norms import WORDS
from biomass.screen import PLATE, Screen

WAYS = (
    ("plate", ""),
    ("shrunk", ""),
    ("controls", "negative"),
    ("controls", "all"),
    ("balanced", "negative"),
    ("balanced", "all"),
)
"""Words with kinds of controls that are judged for each grouping."""

_LOSES = 0.9  # of the accuracy of running averages: expecting less is failing
_WORTH = 1.05  # of the accuracy of running averages: what may also lose is not worth a try below
_NEARLY = 0.95  # of the best: not worth a less simple word
_SHIFTED = 0.05  # ρ from which the composition, not the number of wells, is what statistics suffer from
_FEW = 32  # wells below which their number is
_TRIED = range(1, 65)  # controls a group that are looked at


@dataclass(frozen=True)
class Group:
    """What plates, or coarser groups, hold.

    Attributes:
        by: the columns that make a group.
        table: a row a group, see :func:`.describe_groups`; and ``effective``, its effective wells.
        shift: of the composition between the groups.
    """

    by: tuple[str, ...]
    table: pd.DataFrame
    shift: Shift

    @classmethod
    def over(cls, wells: pd.DataFrame, by: Sequence[str]) -> "Group":
        """The groups of a plate map.

        Raises:
            ConfigError: a column is not in the table.
            DataError: no well is treated.
        """
        table = describe_groups(wells, by)
        treated = wells[(wells["control"] == "").to_numpy()]
        if treated.empty:
            raise DataError(f"all {len(wells)} wells are controls: nothing is treated", "control")
        keys = treated.groupby(list(by), observed=True).ngroup().to_numpy()
        shift = composition_shift(keys, treated["label"].to_numpy())
        effective = effective_wells(table["treated"], table["negative"] + table["positive"], shift.correlation)
        return cls(tuple(by), table.assign(effective=effective), shift)

    @property
    def name(self) -> str:
        """What to call a group."""
        return group_name(self.by)

    def controls(self, kind: str) -> np.ndarray:
        """Control wells of a kind in each group, (G,); of both, where it is not negative."""
        negative = self.table["negative"].to_numpy()
        return negative if kind == "negative" else negative + self.table["positive"].to_numpy()


class Judgement(NamedTuple):
    """What is to be expected of one way of taking statistics.

    Attributes:
        word: such as ``controls``.
        by: the columns that make a group; empty for ``running``.
        controls: their kind, ``negative`` or ``all``; empty where the word does not ask for them.
        state: ``base``, ``safe``, ``risky``, ``fails`` or ``unknown``, see the module.
        expected: relative to running averages; None where it cannot be taken or was not measured.
        reason: a sentence.
        needed: control wells that every group would have to hold for it to be safe; None where it is safe, does not
            depend on controls, or no number helps.
    """

    word: str
    by: tuple[str, ...]
    controls: str
    state: str
    expected: Expected | None
    reason: str
    needed: int | None = None

    def plain(self) -> dict[str, Any]:
        """Plain values, for a file."""
        ratio, low, high = self.expected[:3] if self.expected else (None, None, None)
        return {
            "by": list(self.by),
            "controls": self.controls,
            "state": self.state,
            "accuracy": _rounded(ratio),
            "low": _rounded(low),
            "high": _rounded(high),
            "outside": None if self.expected is None else self.expected.outside,
            "needed": self.needed,
            "reason": self.reason,
            "evidence": list(self.expected.evidence) if self.expected else [],
        }


def group_name(by: Sequence[str]) -> str:
    """What to call a group: ``plate``, or its columns.

    >>> group_name(PLATE), group_name(["week"])
    ('plate', 'week')
    """
    return "plate" if tuple(by) == PLATE else "/".join(by)


def group_wells(wells: pd.DataFrame, by: Sequence[str] = PLATE[:1]) -> list[Group]:
    """The plates of a plate map, and the coarser groups that may take their place in statistics.

    Args:
        wells: a row a well, as :func:`.well_table` gives them.
        by: the columns of the coarser groups; they are left out where they put all wells together, or each plate apart.

    Raises:
        ConfigError: a column is not in the table.
        DataError: no well is treated.
    """
    plates, coarser = Group.over(wells, PLATE), Group.over(wells, by)
    return [plates, coarser] if 1 < len(coarser.table) < len(plates.table) else [plates]


def judge(groups: Sequence[Group], curves: Curves | None = None, needed: bool = True) -> list[Judgement]:
    """Judge all words on a design.

    Args:
        groups: plates, and coarser groups.
        curves: those of the package if left out.
        needed: whether to find out how many controls would do, which takes most of the time.

    Returns:
        ``running`` first, then every way for every grouping.

    >>> wells = pd.DataFrame({"experiment": "", "plate": list("12") * 40, "label": list("aabb") * 20, "images": 1})
    >>> wells = wells.assign(treatment=wells["label"], control=["negative"] * 16 + [""] * 64)
    >>> [(one.word, one.controls, one.state) for one in judge([Group.over(wells, PLATE)])][:2]
    [('running', '', 'base'), ('plate', '', 'safe')]
    """
    curves = curves or read_curves()
    base = Judgement("running", (), "", "base", curves.expect("running", "", 1, 0, 0), _BASE)
    return [base, *(_judge(group, word, kind, curves, needed) for group in groups for word, kind in _ways(group))]


def recommend(judgements: Sequence[Judgement]) -> Judgement:
    """The best of the judged ways that is safe: the highest lower end of its interval. ``running`` where none is.

    Of those that come within 5 % of it, the first is taken, as simpler words stand before others.

    Words that this version of the package cannot take are judged, but not recommended.
    """
    safe = [one for one in judgements if one.state in ("safe", "base") and one.word in WORDS and one.expected]
    lows = [one.expected.low if one.expected else 0.0 for one in safe]
    better = [one for one, low in zip(safe, lows, strict=True) if low >= _NEARLY * max(lows) and one.state == "safe"]
    return better[0] if better else safe[0]


def try_instead(judgements: Sequence[Judgement]) -> Judgement | None:
    """The way that is expected to do best, where none is safe; None where one is, or none does better."""
    if recommend(judgements).state != "base":
        return None
    risky = [one for one in judgements if one.state == "risky" and one.word in WORDS and one.expected]
    best = max(risky, key=lambda one: one.expected.ratio if one.expected else 0.0, default=None)
    return best if best is not None and best.expected and best.expected.ratio >= _WORTH else None


def warning(
    screen: Screen,
    word: str,
    by: Sequence[str] = PLATE,
    controls: str = "negative",
    curves: Curves | None = None,
) -> str | None:
    """One line where the statistics of a run do not fit the plates of its screen, None where they do or may.

    Args:
        screen: only its table is read.
        word: the statistics at inference.
        by: the columns of a group.
        controls: the kind of controls that ``controls`` and ``balanced`` take.
        curves: those of the package if left out.

    >>> from biomass.screen import COLUMNS, make_screen
    >>> table = pd.DataFrame(dict.fromkeys(COLUMNS, [""] * 12)).assign(plate=list("123456") * 2)
    >>> table = table.assign(label=[0, 1, 2, 3, 4, 5] * 2, well=["A01"] * 6 + ["A02"] * 6)
    >>> warning(make_screen(table, pixels=None, classes=list("abcdef")), "plate").partition(":")[0]
    "statistics 'plate' by plate do not fit this screen"
    """
    kind = controls if word in {way for way, kind in WAYS if kind} else ""
    if (word, kind) not in WAYS:
        return None
    wells = well_table(screen, by)
    if (wells["control"] != "").all():
        return None
    own = Group.over(wells, by)
    curves = curves or read_curves()
    judged = _judge(own, word, kind, curves, needed=False)
    if judged.state != "fails":
        return None
    judgements = judge(group_wells(wells), curves, needed=False)
    best = try_instead(judgements) or recommend(judgements)
    return (
        f"statistics '{word}' by {own.name} do not fit this screen: {judged.reason}"
        f"{f' ({said(judged.expected)} of the accuracy of running averages)' if judged.expected else ''}; better: "
        f"{call(best)}"
    )


def call(one: Judgement) -> str:
    """What to call a way of taking statistics.

    >>> call(Judgement("controls", ("week",), "all", "safe", None, ""))
    "'controls' (negative and positive) by week"
    """
    kind = {"": "", "negative": " (negative)", "all": " (negative and positive)"}[one.controls]
    return f"'{one.word}'{kind}{f' by {group_name(one.by)}' if one.by else ''}"


def said(expected: Expected) -> str:
    """An expectation in words: ``0.73 (0.62 … 0.86)``."""
    return f"{expected.ratio:.2f} ({expected.low:.2f} … {expected.high:.2f})"


@dataclass(frozen=True)
class Verdict:
    """The verdict on a plate map.

    Attributes:
        wells: a row a well, see :func:`.well_table`.
        size: number of wells of a plate; None where wells are not known.
        groups: plates first, then coarser groups.
        judgements: of all words on all groups.
        confounded: name of a grouping → place → how strongly treatments depend on it, see :func:`.confounding`.
    """

    wells: pd.DataFrame
    size: int | None
    groups: list[Group]
    judgements: list[Judgement]
    confounded: dict[str, dict[str, float]]

    @classmethod
    def on(
        cls,
        wells: pd.DataFrame,
        by: Sequence[str] = PLATE[:1],
        size: int | None = None,
        curves: Curves | None = None,
    ) -> "Verdict":
        """The verdict on a plate map.

        Args:
            wells: a row a well, see :func:`.well_table`.
            by: the columns of groups that are coarser than the plate.
            size: number of wells of a plate; found out if left out.
            curves: those of the package if left out.

        Raises:
            ConfigError: a column is not there, or no plate has this size.
            DataError: no well is treated, or one lies outside its plate.
        """
        known = bool((wells["well"] != "").all())
        found = plate_format(wells["well"].tolist(), size) if known else None
        groups = group_wells(wells, by)
        places = {group.name: confounding(wells, found if group.by == PLATE else None, group.by) for group in groups}
        return cls(wells, found, groups, judge(groups, curves), places)

    @property
    def best(self) -> Judgement:
        """What is recommended."""
        return recommend(self.judgements)

    @property
    def promising(self) -> Judgement | None:
        """What may gain and may lose, where nothing is recommended in the place of running averages."""
        return try_instead(self.judgements)

    @property
    def said(self) -> str:
        """The verdict in a line."""
        promising = self.promising
        return f"take {call(self.best)}{f'; try {call(promising)}' if promising else ''}"

    def reasons(self) -> list[str]:
        """What is recommended, what may be tried, what fails, what treatments are confounded with; a sentence each."""
        found = [f"{call(self.best)}: {self.best.reason}"]
        promising = self.promising
        if promising is not None and promising.expected is not None:
            found.append(
                f"{call(promising)} may gain or lose, {said(promising.expected)}: what was measured near this design "
                "differs from screen to screen; try it on plates of yours with labels"
            )
        failing: dict[str, list[Judgement]] = {}
        for one in self.judgements:
            if one.state == "fails":
                failing.setdefault(one.reason, []).append(one)
        for reason, ways in failing.items():
            found.append(f"{', '.join(map(call, ways))} {'fails' if len(ways) == 1 else 'fail'}: {reason}")
        strong = {
            by if place == "group" else place: value
            for by, values in self.confounded.items()
            for place, value in values.items()
            if value >= _CONFOUNDED
        }
        if strong:
            places = ", ".join(f"{place} ({value:.2f})" for place, value in strong.items())
            found.append(
                f"treatments go with their {places}, by Cramér's V: what these do to cells cannot be told from what "
                "treatments do"
            )
        return found

    def plain(self) -> dict[str, Any]:
        """Plain values, for a file: ``verdict``, ``statistics`` by word, ``reasons``, and the design behind them."""
        words: dict[str, list[dict[str, Any]]] = {}
        for one in self.judgements:
            words.setdefault(one.word, []).append(one.plain())
        designs = [
            {
                "by": list(group.by),
                "groups": len(group.table),
                "shift": {name: _rounded(value) for name, value in group.shift._asdict().items()},
                "median": {name: _rounded(value) for name, value in group.table.median(numeric_only=True).items()},
            }
            for group in self.groups
        ]
        best, promising = self.best, self.promising
        return {
            "verdict": {"statistics": best.word, "by": list(best.by), "controls": best.controls},
            "try": None if promising is None else promising.plain(),
            "accuracy": "relative to running averages of plain training; low to high is an 80 % interval",
            "statistics": words,
            "reasons": self.reasons(),
            "design": designs,
            "confounding": {
                by: {place: _rounded(value) for place, value in values.items()}
                for by, values in self.confounded.items()
            },
        }


_BASE = "plain training and running averages, with which the others are compared"
_CONFOUNDED = 0.5  # Cramér's V that is worth a sentence


def _ways(group: Group) -> list[tuple[str, str]]:
    """The ways that differ on a design: without positive controls all controls are the negative ones."""
    return [way for way in WAYS if way[1] != "all" or group.table["positive"].any()]


def _judge(group: Group, word: str, kind: str, curves: Curves, needed: bool) -> Judgement:
    """Judge one way of taking statistics."""
    controls = group.controls(kind)
    lacking = int((controls == 0).sum())
    if kind and lacking:
        name = "control" if kind == "all" else "negative control"
        reason = f"{lacking} of {_plural(len(controls), group.name)} {'has' if lacking == 1 else 'have'} no {name}"
        least = _needed(group, word, kind, curves) if needed else None
        return Judgement(word, group.by, kind, "fails", None, reason, least)
    expected = _expect(group, word, kind, controls, curves)
    if expected is None:
        return Judgement(word, group.by, kind, "unknown", None, "it was not measured")
    state = "safe" if expected.low >= 1 else "fails" if expected.ratio < _LOSES else "risky"
    reason = _reason(group, kind, state)
    if expected.outside:
        reason += f"; nothing like it was measured (the nearest is a factor of {2**expected.octaves:.0f} away)"
    least = _needed(group, word, kind, curves) if needed and kind and state != "safe" else None
    return Judgement(word, group.by, kind, state, expected, reason, least)


def _reason(group: Group, kind: str, state: str) -> str:
    """A sentence on what a way of taking statistics finds in the groups."""
    middle, shift = group.table.median(numeric_only=True), group.shift
    each = f"{article(group.name)} {group.name}"
    if kind:
        c = float(np.median(group.controls(kind)))
        what = f"{'negative ' * (kind == 'negative')}control well"
        measured = {
            "safe": "which are the same whatever else it holds",
            "risky": "and designs like this one were measured to gain or to lose by them",
            "fails": "and designs like this one were measured to lose by them",
        }
        return f"{each} has {_plural(c, what)} (median), {measured[state]}"
    held = (
        f"{each} has {_plural(middle['wells'], 'well')}, {middle['treated']:.0f} of them treated, with "
        f"{middle['classes']:.0f} of {_plural(shift.classes, 'class')} (median; shift ρ = "
        f"{max(shift.correlation, 0):.2f})"
    )
    if state == "safe":
        return f"{held}, so that what its wells have in common is the batch effect"
    if shift.correlation >= _SHIFTED:
        return f"{held}, so that what its few classes have in common is removed as a batch effect"
    return f"{held}, which is little to take a mean and a variance from" if middle["wells"] < _FEW else held


def _needed(group: Group, word: str, kind: str, curves: Curves) -> int | None:
    """The least number of controls in every group with which a word is safe, of those that are tried."""
    controls = group.controls(kind)
    for number in _TRIED:
        if number > controls.min():
            expected = _expect(group, word, kind, np.maximum(controls, number), curves)
            if expected is not None and expected.low >= 1:
                return number
    return None


def _expect(group: Group, word: str, kind: str, controls: np.ndarray, curves: Curves) -> Expected | None:
    """What to expect of a way where groups have so many controls: by the medians, as measurements are written down."""
    treated = float(group.table["treated"].median())
    return curves.expect(word, kind, treated, float(np.median(controls)), group.shift.correlation)


def article(name: str) -> str:
    """The article of a name: ``a plate``, ``an experiment``."""
    return "an" if name[:1].lower() in "aeio" else "a"


def _plural(number: float, what: str) -> str:
    if number == 1:
        return f"1 {what}"
    return f"{number:.0f} {what}{'es' if what.endswith('s') else 's'}"


def _rounded(value: float | None) -> float | None:
    """A number for a file; None where it is none."""
    return round(float(value), 4) if value is not None and np.isfinite(value) else None
