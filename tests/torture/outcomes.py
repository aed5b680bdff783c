"""What comes of a case, and the table of them."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.torture.forks import Ended


class Outcome(StrEnum):
    """What came of a case; the heads of the table's columns."""

    RIGHT = "right"
    ADVISED = "one line with remedy"
    BARE = "one line without"
    TRACEBACK = "traceback"
    CRASH = "crash"
    HANG = "hang"
    SILENT = "silently wrong"
    PAYLOAD = "payload"


GOOD = (Outcome.RIGHT, Outcome.ADVISED)
BAD = (Outcome.TRACEBACK, Outcome.CRASH, Outcome.HANG, Outcome.SILENT, Outcome.PAYLOAD)
"""What must not happen; of such a case the harness ends with the exit code 1."""

WRONG = "WRONG: "
"""What a case prints before the reason why a result is not what it must be."""
WRONG_CODE = 99

_VERBS = (
    "add|adapt|allow|ask|build|calibrate|call|change|check|choose|close|complete|continue|convert|copy|correct|crop|cut|delete|"
    "divide|do|download|encode|export|extract|fetch|find|fit|fix|free|get|give|go|install|join|keep|label|leave|let|list|"
    "load|lower|look|make|measure|mend|merge|mount|move|name|open|order|pack|pass|point|profile|pull|put|raise|read|remove|"
    "rename|repair|repeat|replace|resume|round|run|save|say|select|set|show|skip|spell|split|start|stop|store|take|"
    "tell|train|try|turn|type|unpack|update|upgrade|use|wait|write"
)
_REMEDY = re.compile(
    r"did you mean|\bmust be\b|\bstands in quotes\b|--help\b|--(?:cfg job|hydra-help) (?:lists|shows)|"
    rf"(?:[;:,(?.]|\bor|\band|\bthen)\s+(?:or |then |and |first )*(?:{_VERBS})\b",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Finding:
    """A case and what came of it.

    Attributes:
        case: how the case is called: ``part/kind/number``.
        outcome: what came of it.
        what: the command, or what was done in words.
        tail: the last lines that were printed.
        seconds: of a processor.
    """

    case: str
    outcome: Outcome
    what: str
    tail: str
    seconds: float


def outcome_of(ended: Ended, canary: Path) -> Outcome:
    """What came of a process that ran one case."""
    if canary.exists() or _CONTROL.search(ended.output):
        return Outcome.PAYLOAD
    if ended.hung:
        return Outcome.HANG
    if ended.signal:
        return Outcome.CRASH
    if ended.code == WRONG_CODE:
        return Outcome.SILENT
    if "Traceback (most recent call last)" in ended.output:
        return Outcome.TRACEBACK
    return Outcome.RIGHT if ended.code == 0 else outcome_of_text(ended.output)


def outcome_of_text(output: str) -> Outcome:
    """Whether a failed command said why in one line, and what to do.

    >>> outcome_of_text("error: image 'a.png' is damaged: copy it again").value
    'one line with remedy'
    >>> outcome_of_text("error: something is wrong\\nwith it; give another").value
    'one line without'
    """
    lines = [line for line in output.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    said = re.match(r"(?:error|interrupted|stopped): |stopped|interrupted", last)
    noise = "Error executing job with overrides" in output  # Hydra's own words, before ours
    return Outcome.ADVISED if said and _REMEDY.search(last) and not noise else Outcome.BARE


def table_of(findings: Iterable[Finding]) -> str:
    """The counts, a row a kind of case, a column an outcome."""
    counts: dict[str, Counter[Outcome]] = {}
    for finding in findings:
        part, kind, _ = finding.case.split("/", 2)
        for row in (f"{part}/{kind}", part, "all"):
            counts.setdefault(row, Counter())[finding.outcome] += 1
    parts = [row for row in counts if "/" not in row and row != "all"]
    rows = [row for part in parts for row in (*sorted(r for r in counts if r.startswith(f"{part}/")), part)]
    width = max(map(len, ["part", *rows]))
    head = f"{'part':{width}}  " + "  ".join(outcome.value for outcome in Outcome) + "  cases"
    lines = [head, "-" * len(head)]
    for row in (*rows, "all"):
        if row not in counts:
            continue
        cells = (f"{counts[row][outcome] or '.':>{len(outcome.value)}}" for outcome in Outcome)
        lines.append(f"{row:{width}}  {'  '.join(cells)}  {counts[row].total():5}")
        if row in (*parts, "all"):
            lines.append("-" * len(head))
    return "\n".join(lines)
