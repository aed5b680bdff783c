"""What the verdict says, and that it says no more than is known."""

import json

import numpy as np
import pandas as pd
import pytest

from biomass.judgement.effects import NAMES, Effect
from biomass.judgement.recommend import Pair, recommend
from biomass.judgement.scores import Measured
from biomass.judgement.verdict import paired_difference, say

BEFORE, AFTER = ("running", "none"), ("plate", "none")
PREDICTED, REPLICATES, MECHANISMS = "plate_predicted", "map_other_plate", "nsc"


def row(
    pair: Pair, metric: str, value: float, spread: float = 0.02, null: float = 0.04, **more: object
) -> dict[str, object]:
    about = {"statistics": pair[0], "correction": pair[1], "refit_only": False, "metric": metric, "null": null, "n": 96}
    return about | {"value": value, "low": value - spread, "high": value + spread, "p": 0.001, "note": ""} | more


def effects(**words: str) -> dict[str, Effect]:
    """Effects by their words; the others are not there."""
    shares = {"strong": 0.3, "weak": 0.02, "none": 0.0}
    return {
        name: Effect(name, word, shares.get(word, np.nan), 0.5, 0.001, reason="" if word in shares else "few plates")
        for name in NAMES
        for word in (words.get(name, "none"),)
    }


def both(after: float, replicates: tuple[float, float], **more: object) -> pd.DataFrame:
    rows = [row(BEFORE, PREDICTED, 0.91), row(AFTER, PREDICTED, after)]
    rows += [row(pair, REPLICATES, value, **more) for pair, value in zip((BEFORE, AFTER), replicates, strict=True)]
    return pd.DataFrame(rows)


def test_an_effect_that_is_gone_while_biology_is_found_better() -> None:
    verdict = say(both(0.04, (0.21, 0.48)), {BEFORE: effects(plate="strong"), AFTER: effects()})
    text = "\n".join(verdict.sentences)
    assert verdict.sentences[0].startswith(
        "After plate statistics without correction the batch effect is gone, and bio"
    )
    for part in ("91 %", "chance 4 %", "rose from .21 to .48", ".46 to .50", "Use plate statistics"):
        assert part in text
    assert (verdict.named, verdict.remaining, verdict.after) == (("plate",), (), AFTER)


@pytest.mark.parametrize(
    ("replicates", "said"),
    [
        ((0.48, 0.05), "is gone, and so is the biology"),
        ((0.48, 0.3), "is gone, but biology was lost with it"),
        ((0.48, 0.47), "is gone, and the biology stays"),
        ((0.05, 0.04), "biology is seen neither before nor after"),
    ],
)
def test_biology_that_went_with_the_effect_is_named(replicates: tuple[float, float], said: str) -> None:
    found = {BEFORE: effects(plate="strong"), AFTER: effects()}
    assert said in say(both(0.04, replicates), found, after=AFTER).sentences[0]


def test_families_that_disagree_are_both_named() -> None:
    rows = [row(BEFORE, MECHANISMS, 0.6), row(AFTER, MECHANISMS, 0.3)]
    table = pd.concat([both(0.04, (0.2, 0.5)), pd.DataFrame(rows)])
    first = say(table, {BEFORE: effects(plate="strong"), AFTER: effects()}, after=AFTER).sentences[0]
    assert "replicates are found better and mechanisms are found less well" in first


def test_an_effect_that_is_left_is_not_gone() -> None:
    found = {BEFORE: effects(plate="strong", edge="weak"), AFTER: effects(plate="weak", edge="weak")}
    verdict = say(both(0.12, (0.2, 0.5)), found)
    assert "smaller, but not gone (30 % of the variance before, 2 % after)" in verdict.sentences[0]
    assert verdict.remaining == ("plate", "edge")


def test_plates_that_can_still_be_told_apart_are_not_called_free_of_effects() -> None:
    found = {BEFORE: effects(plate="strong"), AFTER: effects()}
    assert "plates can still be told apart" in say(both(0.3, (0.2, 0.5)), found).sentences[0]
    alone = say(pd.DataFrame([row(BEFORE, PREDICTED, 0.5)]), {BEFORE: effects()})
    assert "plates can still be told apart" in alone.sentences[0]


def test_what_cannot_be_told_is_not_claimed() -> None:
    verdict = say(pd.DataFrame(), {BEFORE: effects(**dict.fromkeys(NAMES, "cannot be told"))})
    assert verdict.sentences == ("Whether there is a batch effect cannot be told: few plates.",)
    assert verdict.named == ()
    hedged = say(pd.DataFrame([row(BEFORE, PREDICTED, 0.6)]), {BEFORE: effects(plate="cannot be told")}).sentences
    assert any("60 %" in one and "may be what they hold" in one for one in hedged)
    found = {BEFORE: effects(plate="strong"), AFTER: effects(plate="cannot be told")}
    assert "cannot be told whether the batch effect is gone" in say(both(0.04, (0.2, 0.5)), found).sentences[0]
    assert any(
        "experiments differ cannot be told" in one for one in say(both(0.9, (0.2, 0.2)), {BEFORE: effects(
            plate="strong", experiment="cannot be told")}).sentences
    )  # fmt: skip


def test_changes_within_the_intervals_are_no_changes_unless_the_difference_is_sure() -> None:
    table, found = both(0.04, (0.21, 0.25), spread=0.05), {BEFORE: effects(plate="strong"), AFTER: effects()}
    assert any("no sure change" in one for one in say(table, found, after=AFTER).sentences)
    sure = say(table, found, after=AFTER, differences={REPLICATES: (0.04, 0.02, 0.06)})
    assert any("rose from .21 to .25" in one for one in sure.sentences)


def test_without_intervals_nothing_is_sure() -> None:
    table = both(0.04, (0.21, 0.9), low=np.nan, high=np.nan)
    text = "\n".join(say(table, {BEFORE: effects(plate="strong"), AFTER: effects()}, after=AFTER).sentences)
    assert "no interval" in text
    assert "no sure change" in text
    assert "nan" not in text


def test_cell_counts_that_do_as_well_are_named() -> None:
    table = pd.concat([both(0.04, (0.2, 0.3)), pd.DataFrame([row(("cell count only", "none"), REPLICATES, 0.4)])])
    said = say(table, {BEFORE: effects()}).sentences
    assert any("cells alone does as well" in one for one in said)
    chance = pd.concat([both(0.04, (0.04, 0.04)), pd.DataFrame([row(("cell count only", "none"), REPLICATES, 0.04)])])
    assert not any("cells alone" in one for one in say(chance, {BEFORE: effects()}).sentences)


def test_a_verdict_is_json() -> None:
    verdict = say(both(0.04, (0.2, 0.5)), {BEFORE: effects(edge="cannot be told"), AFTER: effects()})
    known = json.loads(json.dumps(verdict.effects, allow_nan=False))
    assert known["running · none"]["edge"]["share"] is None


def test_the_best_biology_is_recommended_and_among_equals_the_least_batch_effect() -> None:
    table = both(0.12, (0.48, 0.47))
    best = recommend(table, BEFORE)
    assert best is not None
    assert best.best == AFTER
    far = recommend(both(0.12, (0.48, 0.3)), BEFORE)
    assert far is not None
    assert far.best == BEFORE
    assert far.sentence.startswith("Keep")


def test_what_must_be_fitted_again_is_not_for_new_plates() -> None:
    harmony = ("running", "harmony")
    rows = [row(harmony, PREDICTED, 0.04, refit_only=True), row(harmony, REPLICATES, 0.9, refit_only=True)]
    best = recommend(pd.concat([both(0.12, (0.2, 0.5)), pd.DataFrame(rows)]), BEFORE)
    assert best is not None
    assert (best.best, best.lasting) == (harmony, AFTER)
    assert "for new plates, use plate statistics" in best.sentence


def test_what_loses_a_family_of_biology_is_not_recommended_however_good_the_other_is() -> None:
    table = both(0.04, (0.2, 0.9))
    for mechanisms, lost in ((0.41, False), (0.2, True)):
        rows = [row(BEFORE, MECHANISMS, 0.42), row(AFTER, MECHANISMS, mechanisms)]
        best = recommend(pd.concat([table, pd.DataFrame(rows)]), BEFORE)
        assert best is not None
        assert best.best == (BEFORE if lost else AFTER)
        assert ("Left out" in best.sentence) is lost


def test_a_loss_that_only_the_paired_difference_shows_is_a_loss() -> None:
    rows = [row(pair, MECHANISMS, value, spread=0.2) for pair, value in ((BEFORE, 0.6), (AFTER, 0.4))]
    table = pd.concat([both(0.04, (0.2, 0.9)), pd.DataFrame(rows)])
    for differences, chosen in (({}, AFTER), ({AFTER: {MECHANISMS: (-0.2, -0.3, -0.1)}}, BEFORE)):
        best = recommend(table, BEFORE, None, differences)
        assert best is not None
        assert best.best == chosen


def test_what_is_surely_better_by_one_metric_alone_is_named() -> None:
    third = ("running", "whiten")
    rows = [row(pair, MECHANISMS, value) for pair, value in ((BEFORE, 0.4), (AFTER, 0.4), (third, 0.73))]
    rows += [row(third, REPLICATES, 0.22), row(third, PREDICTED, 0.9)]
    best = recommend(pd.concat([both(0.04, (0.2, 0.9)), pd.DataFrame(rows)]), BEFORE)
    assert best is not None
    assert best.best == AFTER
    assert "But running statistics with 'whiten' is better by" in best.sentence
    assert ".73 against .40" in best.sentence


def test_yardsticks_are_not_recommended() -> None:
    rows = [row(("untrained", "none"), REPLICATES, 0.99), row(("untrained", "none"), PREDICTED, 0.04)]
    best = recommend(pd.concat([both(0.12, (0.2, 0.5)), pd.DataFrame(rows)]), BEFORE)
    assert best is not None
    assert best.best == AFTER


def test_nothing_is_recommended_without_biology() -> None:
    assert recommend(both(0.12, (np.nan, np.nan)), BEFORE) is None


def test_a_paired_difference_is_surer_than_two_intervals() -> None:
    rng = np.random.default_rng(0)
    groups, level = np.repeat(np.arange(20), 5), np.repeat(rng.standard_normal(20), 5)
    one, other = (Measured(level + shift + 0.01 * rng.standard_normal(100), groups, 0.0) for shift in (0, 0.1))
    value, low, high = paired_difference(one, other)
    assert 0.09 < low < value < high < 0.11
