"""The page: sections made from the files of a run's folder, one after the other, in one HTML that needs nothing."""

import base64
import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from biomass.atomic import whole_file
from biomass.errors import BiomassError, DataError, one_line, printable
from biomass.report.comparison import compared
from biomass.report.curves import learning_curves
from biomass.report.drift import drift
from biomass.report.factorial import factorial
from biomass.report.files import EVALUATION, METRICS, TABLE
from biomass.report.ladder import ladder
from biomass.report.layers import layer_distances
from biomass.report.maps import maps
from biomass.report.markup import render
from biomass.report.metrics import all_metrics
from biomass.report.plate_maps import plate_maps
from biomass.report.position import position
from biomass.report.provenance import provenance, skipped
from biomass.report.samples import sample_images
from biomass.report.section import Section
from biomass.report.stress import stress_test
from biomass.report.verdict import verdict

log = logging.getLogger(__name__)

_ODD = re.compile(r"\\\\|\\(?:u00[01][0-9a-f]|[bfr])|[^\x20-\x7e]")
"""Signs of JSON that may stand for what cannot be shown; line breaks and tabs can."""

SECTIONS: Mapping[str, Callable[[Path], Section | str]] = {
    "verdict": verdict,
    "statistics × corrections": factorial,
    "ladder": ladder,
    "maps of the wells": maps,
    "plate maps": plate_maps,
    "effects of the place on a plate": position,
    "new plates": drift,
    "stress test": stress_test,
    "learning curves": learning_curves,
    "layers": layer_distances,
    "sample images": sample_images,
    "all metrics": all_metrics,
}
"""What is on the page of a run, in order: name → from its folder to a section, or why there is none."""

_DAMAGE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, OSError)
"""What values raise that no run has written."""

_RUN = (EVALUATION, METRICS, TABLE, "config.yaml", "metrics.jsonl", "stress.csv")
"""Files of which a run has at least one."""


def write_report(folders: Sequence[Path], out: Path) -> Path:
    """The page of a run, or of several side by side.

    Args:
        folders: of the runs.
        out: the file.

    Returns:
        ``out``.

    Raises:
        DataError: none of the folders holds a run; some that do not are left out, which the page says.
        ConfigError: the file cannot be written.
    """
    reasons = {folder: _why_not(folder) for folder in folders}
    runs = [folder for folder, reason in reasons.items() if not reason]
    if not runs:
        raise DataError(reasons[folders[0]])
    left_out = [(str(folder), reason) for folder, reason in reasons.items() if reason]
    for _, reason in left_out:
        log.warning("left out: %s", reason)
    page = one_run(folders[0]) if len(folders) == 1 else several_runs(runs, out, left_out)
    with whole_file(out, "store") as part:
        part.write_text(page, encoding="utf-8", errors="replace")  # a name of a file may be no text
    return out


def _why_not(folder: Path) -> str:
    """Why there can be no page of a folder; empty where there can."""
    if not folder.is_dir():
        return f"'{folder}' is no folder; name the folder of a run, such as runs/my_run"
    if not any((folder / name).exists() for name in _RUN):
        return f"'{folder}' holds no run: none of {', '.join(_RUN)} is in it; name the folder of a run"
    return ""


def one_run(folder: Path) -> str:
    """The page of a run."""
    found = {name: section_of(make, folder) for name, make in SECTIONS.items()}
    sections = [one for one in found.values() if isinstance(one, Section)]
    origin = section_of(provenance, folder)
    absent: dict[str, list[str]] = {}
    for name, why in [*found.items(), ("how it was made", origin)]:
        if isinstance(why, str):
            absent.setdefault(why, []).append(name)
    left_out = [(", ".join(names), why) for why, names in absent.items()]
    sections += [one for one in (skipped(folder, left_out), origin) if isinstance(one, Section)]
    is_judged = isinstance(found["statistics × corrections"], Section)
    return assemble(folder.resolve().name, "Is there a batch effect, and is it gone?" if is_judged else "", sections)


def several_runs(folders: Sequence[Path], out: Path, left_out: Sequence[tuple[str, str]] = ()) -> str:
    """The page of several runs, side by side; it says what else was named and why it is not there."""
    title = f"{len(folders)} run{'s' if len(folders) > 1 else ''} side by side"
    return assemble(title, "", compared(folders, out.parent, left_out))


def section_of(make: Callable[[Path], Section | str], folder: Path) -> Section | str:
    """A section; why there is none, also where a file is damaged.

    A file may be damaged so that it is read and yet cannot be shown: one section less is no reason to lose the page.
    """
    try:
        return make(folder)
    except BiomassError as error:
        return one_line(error)
    except _DAMAGE as error:
        log.debug("where it happened", exc_info=True)
        return f"its files hold what cannot be shown ({type(error).__name__}: {one_line(error)}): make them again"


def assemble(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The HTML of sections, with their scripts and their data in it.

    Only the scripts of the package may run: the page allows these by their hashes, and nothing else.
    """
    names = ["base", *dict.fromkeys(one.script for one in sections if one.script)]
    scripts = [static(f"{name}.js") for name in names] + ["biomass.start();\n"]
    return render(
        "report",
        title=title,
        subtitle=subtitle,
        sections=sections,
        style=Markup(static("page.css")),
        scripts=[Markup(one) for one in scripts],
        hashes=[_hash(one) for one in scripts],
        data={one.key: as_json(one.data or {}) for one in sections if one.script},
    )


def static(name: str) -> str:
    """A file of ``static/``."""
    return (resources.files("biomass.report") / "static" / name).read_text(encoding="utf-8")


def as_json(data: Mapping[str, Any]) -> Markup:
    """JSON that may stand in a script element: no name in it can end that.

    >>> as_json({"name": "</script>"})
    Markup('{"name":"\\\\u003c/script>"}')
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(_ODD.sub(_harmless, text).replace("<", "\\u003c"))


def _harmless(found: re.Match[str]) -> str:
    """A sign of JSON, so that a script reads of it what :func:`printable` makes of it, and not the sign itself."""
    sign = found[0]
    if sign == r"\\":  # a backslash in a name, perhaps before letters that look like those of an escape
        return sign
    return f"\\{sign}" if sign.startswith("\\") else printable(sign).replace("\\", r"\\")


def _hash(script: str) -> str:
    """Of the text of a script element, for Content-Security-Policy."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
