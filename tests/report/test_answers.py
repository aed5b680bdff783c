"""The verdict at a glance, and what rows and columns are called."""

import json

import numpy as np
import pandas as pd
import pytest
from judged_runs import write_judged

from biomass.judgement.corrections import CORRECTIONS
from biomass.judgement.results import NULL_ROWS
from biomass.norms import WORDS
from biomass.report import called, maps
from biomass.report.answers import answers
from biomass.report.judged import About, Judged
from biomass.report.page import one_run, several_runs

BEFORE, AFTER = ("running", "none"), ("plate", "none")


def effect(word: str, share: float | None = None, p: float | None = None, reason: str = "") -> dict:
    return {"word": word, "share": share, "p": p, "reason": reason}


def verdict(first: dict, then: dict | None) -> dict:
    effects = {" · ".join(BEFORE): first, " · ".join(AFTER): then}
    return {"before": list(BEFORE), "after": list(AFTER) if then else None, "effects": effects}


def judged(**values: tuple[float, float, float, float]) -> Judged:
    """A table of values before and after: key → value before, value after, low after, chance."""
    rows = []
    for key, (one, other, low, null) in values.items():
        for pair, value, least in ((BEFORE, one, one - 0.02), (AFTER, other, low)):
            row = {"statistics": pair[0], "correction": pair[1], "refit_only": False, "metric": key, "value": value}
            rows.append(row | {"low": least, "high": value + 0.02, "null": null, "p": 0.01, "n": 9, "note": ""})
    about = {key: About(f"title of {key}", "", "", "", "", "", "") for key in values}
    return Judged(about, pd.DataFrame(rows))


def short(said: dict, table: Judged | None = None) -> dict[str, str]:
    return {one.about: one.short for one in answers(said, table)}


def test_an_effect_that_is_there_and_gone() -> None:
    said = verdict({"plate": effect("strong", 0.3, 0.001)}, {"plate": effect("none", 0.001, 0.6)})
    found = answers(said, judged(plate_predicted=(0.9, 0.05, 0.04, 0.04), map_other_plate=(0.2, 0.5, 0.45, 0.1)))
    assert [(one.about, one.short) for one in found] == [
        ("batch effect", "Yes, strong"), ("afterwards", "Yes"), ("biology", "replicates 0.20 → 0.50")
    ]  # fmt: skip
    assert "30 % of the variance, p 0.001" in found[0].long
    assert "title of map_other_plate: after [0.45, 0.52], chance 0.10" in found[2].long


@pytest.mark.parametrize(
    ("then", "word"),
    [
        (effect("weak", 0.05, 0.001), "Smaller, but not gone"),
        (effect("strong", 0.28, 0.001), "No"),
        (effect("cannot be told", reason="too few"), "Cannot be told"),
    ],
)
def test_an_effect_that_is_not_surely_gone(then, word) -> None:
    assert short(verdict({"plate": effect("strong", 0.3, 0.001)}, {"plate": then}))["afterwards"] == word


def test_plates_that_can_still_be_told_apart_are_not_said_to_be_alike() -> None:
    said = verdict({"plate": effect("strong", 0.3, 0.001)}, {"plate": effect("none", 0.001, 0.6)})
    assert short(said, judged(plate_predicted=(0.9, 0.5, 0.45, 0.04)))["afterwards"] == "From the means"


def test_an_effect_that_is_nowhere_new_or_unknown() -> None:
    nothing, weak = {"plate": effect("none", 0.0, 0.7)}, {"plate": effect("weak", 0.02, 0.001)}
    assert short(verdict(nothing, nothing)) == {"batch effect": "None was found"}
    assert short(verdict(nothing, weak))["afterwards"] == "It is new"
    unknown = {"plate": effect("cannot be told", reason="there is one plate")}
    assert [one.long for one in answers(verdict(unknown, None), None)] == ["there is one plate"]


def test_what_a_file_does_not_say_is_not_answered() -> None:
    for said in (None, [], {}, {"before": "x"}, {"before": ["a", "b"], "effects": 3}):
        assert answers(said, None) == []
    assert answers({"before": list(BEFORE), "effects": {"running · none": {"plate": 1}}}, None) == []


def test_the_page_of_one_run_and_of_several_answer_first(tmp_path) -> None:
    runs = [write_judged(tmp_path / name, hostile=False) for name in ("a", "b")]
    page = one_run(runs[0])
    assert page.index("What to use?") < page.index("Plates can be told apart") < page.index("Which effects there are")
    assert "for plates that come later: plate statistics with &#39;combat&#39;" in page
    assert several_runs(runs, tmp_path / "page.html").count("Yes, strong") == 2
    about = json.loads((runs[1] / "evaluation.json").read_text())
    del about["verdict"]["effects"]
    (runs[1] / "evaluation.json").write_text(json.dumps(about))
    assert several_runs(runs, tmp_path / "page.html").count("Yes, strong") == 1


def test_every_row_and_column_that_can_be_there_says_what_it_is() -> None:
    assert all(called.correction(key).title for key in CORRECTIONS)
    assert all(called.statistics(key).title for key in (*WORDS, *NULL_ROWS))
    assert called.known([called.statistics("my table"), called.correction("mine")]) == []


def test_a_few_wells_far_out_do_not_squeeze_the_map() -> None:
    values = np.concatenate([np.linspace(0, 1, 500), [1e6, np.nan]])
    low, high = maps._ends(values)
    assert (low, high) == pytest.approx((0, 2), abs=0.05)
    assert maps._ends(np.array([0.0, 1.0, 2.0])) == (0.0, 2.0)
    assert maps._ends(np.array([np.nan])) == (0.0, 0.0)
