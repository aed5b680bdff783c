"""All metrics: what they are, and their values under every pair of statistics and correction."""

from pathlib import Path

from biomass.judgement.scores import DRAWS, LEVEL
from biomass.report.judged import read_judged
from biomass.report.markup import render
from biomass.report.section import Section

LEAD = (
    "Each with its direction, its chance level and the paper that it comes from. Intervals hold "
    f"{100 * LEVEL:.0f}\u00a0% of {DRAWS:,} draws of whole groups."
)


def all_metrics(folder: Path) -> Section | str:
    """The section."""
    judged = read_judged(folder)
    if isinstance(judged, str):
        return judged
    scores = {key: judged.of(key) for key in judged.metrics}
    notes: dict[str, int] = {}
    for one in (score for found in scores.values() for score in found.values()):
        if one["note"]:
            notes.setdefault(one["note"], len(notes) + 1)
    html = render("metrics", judged=judged, scores=scores, notes=notes)
    return Section("metrics", "All metrics", html, lead=LEAD)
