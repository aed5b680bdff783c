"""Look up every package of requirements.lock among published advisories (``make audit``).

    python misc/audit.py

pip-audit is fetched when it is called, and is no dependency. Where the service that lists advisories cannot be reached,
or knows none of the packages, that is an error: nothing was looked up.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from biomass.errors import one_line, say

LOCK = Path(__file__).parents[1] / "requirements.lock"
OPTIONS = ["--disable-pip", "--require-hashes", "--progress-spinner", "off", "-f", "json", "-r"]


def judge(found: Mapping[str, Any]) -> list[str]:
    """A line for each advisory of an answer of pip-audit.

    Raises:
        LookupError: no package was looked up.

    >>> judge({"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["1.1"]}]}]})
    ['a 1: CVE-1, mended in 1.1']
    """
    known = [one for one in found["dependencies"] if "skip_reason" not in one]
    if not known:
        raise LookupError(f"the service knows none of {len(found['dependencies'])} packages")
    return [
        f"{one['name']} {one['version']}: {each['id']}, mended in {', '.join(each['fix_versions']) or 'no version'}"
        for one in known
        for each in one["vulns"]
    ]


def main() -> None:
    """Print what was found; the exit code is 1 if that is anything, and 2 if nothing could be looked up."""
    done = subprocess.run(
        [sys.executable, *["-m", "uv", "tool", "run", "pip-audit"], *OPTIONS, str(LOCK)],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        answer = json.loads(done.stdout)
        advisories = judge(answer)
    except (ValueError, KeyError, LookupError) as error:
        last = done.stderr.strip().rpartition("\n")[2]
        why = error if isinstance(error, LookupError) else last
        print(f"error: no advisory could be looked up ({one_line(str(why))}): try again where PyPI is", file=sys.stderr)
        raise SystemExit(2) from None
    say("\n".join(advisories) or f"no advisory is known for {len(answer['dependencies'])} packages")
    raise SystemExit(bool(advisories))


if __name__ == "__main__":
    main()
