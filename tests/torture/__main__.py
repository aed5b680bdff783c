"""``python -m tests.torture``: all parts, or some; one table, and below it every case that did not end well."""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.torture import kit
from tests.torture.cases import Case, load_everything, remove, run_case
from tests.torture.catalogue import PARTS, Driven, all_cases, run_driven
from tests.torture.commands import COMMANDS, make_reference
from tests.torture.outcomes import BAD, GOOD, Finding, Outcome, table_of


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; exit code 1 if anything happened that must not."""
    parser = argparse.ArgumentParser("python -m tests.torture", description="Kills, damage, faulty disks, odd input.")
    parser.add_argument("--seed", type=int, default=0, help="everything random follows from it")
    parser.add_argument("--minutes", type=float, default=20.0, help="no case is begun after that")
    parser.add_argument("--only", action="append", help=f"a part ({', '.join(PARTS)}), or a kind of one: inputs/png")
    parser.add_argument("--cases", type=int, default=3200, help="of the part inputs")
    parser.add_argument("--case", action="append", help="one case alone, as the list names it")
    parser.add_argument("--jobs", type=int, default=2, help="cases at the same time")
    parser.add_argument("--work", type=Path, help="a folder to keep the screens and networks of all cases in")
    args = parser.parse_args(arguments)
    began = time.monotonic()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in the background without it
    load_everything()
    scratch = Path(tempfile.mkdtemp(prefix="torture-"))  # no TemporaryDirectory: a child that ends would remove it
    try:
        folder = (args.work or scratch / "kit").absolute()
        kit.build(folder)
        cases = chosen(all_cases(args.seed, args.cases), args.only, args.case)
        if any(isinstance(case, Driven) for case in cases):
            for name in [name for name in COMMANDS if any(f"/{name}-" in case.name for case in cases)]:
                make_reference(folder, name)
        findings = run_all(cases, args.seed, folder, scratch, args.jobs, began + 60 * args.minutes)
    finally:
        remove(scratch)
    report(findings, len(cases), args, time.monotonic() - began)
    sys.exit(any(finding.outcome in BAD for finding in findings))


def chosen(cases: list[Case | Driven], only: list[str] | None, names: list[str] | None) -> list[Case | Driven]:
    """The cases that were asked for.

    Raises:
        SystemExit: none is called so.
    """
    asked = names or only
    if not asked:
        return cases
    found = [c for c in cases if c.name in (names or ()) or any(c.name.startswith(f"{one}/") for one in only or ())]
    if not found:
        raise SystemExit(
            f"error: no case '{', '.join(asked)}': give a part ({', '.join(PARTS)}), or a name from the list"
        )
    return found


def run_all(
    cases: list[Case | Driven], seed: int, folder: Path, scratch: Path, jobs: int, until: float
) -> list[Finding]:
    """Run cases in a few processes, each of which takes every ``jobs``-th of them, and writes down what it found."""
    notes = [scratch / f"findings-{job}.jsonl" for job in range(jobs)]
    workers, parent = [], os.getpid()
    for job, note in enumerate(notes):
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with note.open("a") as file:
                    for case in cases[job::jobs]:
                        if time.monotonic() > until or os.getppid() != parent:
                            break
                        run = run_driven if isinstance(case, Driven) else run_case
                        finding = run(case, seed, folder, scratch)  # type: ignore[arg-type]
                        file.write(json.dumps(vars(finding)) + "\n")
                        file.flush()
                        if finding.outcome not in GOOD:
                            print(f"  {finding.case}: {finding.outcome}", file=sys.stderr, flush=True)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        workers.append(pid)
    if sum(os.waitpid(pid, 0)[1] for pid in workers):
        raise SystemExit("error: the harness itself failed, see above")
    lines = [json.loads(line) for note in notes if note.exists() for line in note.read_text().splitlines()]
    return sorted((Finding(**line | {"outcome": Outcome(line["outcome"])}) for line in lines), key=lambda one: one.case)


def report(findings: list[Finding], asked: int, args: argparse.Namespace, seconds: float) -> None:
    """Print the table, what is missing in it, and every case that did not end well."""
    print(table_of(findings))
    used = sum(finding.seconds for finding in findings)
    print(f"seed {args.seed}: {len(findings)} of {asked} cases, {used:.0f} s of processors, {seconds:.0f} s in all")
    if len(findings) < asked:
        print(f"{asked - len(findings)} cases were not begun within {args.minutes:g} minutes: give more --minutes")
    if os.geteuid() != 0:
        print("the part disks is left out: it mounts file systems, which only root may do")
    for finding in findings:
        if finding.outcome in GOOD:
            continue
        what = finding.what if len(finding.what) < 700 else f"{finding.what[:120]} … {finding.what[-560:]}"
        print(f"\n[{finding.outcome.value}] {finding.case}\n  {what}")
        print("".join(f"  | {line}\n" for line in finding.tail.splitlines()), end="")
        print(f"  again: python -m tests.torture --seed {args.seed} --cases {args.cases} --case '{finding.case}'")


if __name__ == "__main__":
    main()
