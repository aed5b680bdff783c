"""A handful of the torture, and that the harness sees what it looks for."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.torture import archives, forks, images, kills, tables
from tests.torture.cases import CANARY, Case, Trial, random_of, run_case
from tests.torture.catalogue import all_cases
from tests.torture.commands import make_reference
from tests.torture.outcomes import GOOD, Finding, Outcome, table_of


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """The parts of the kit that no network is trained for."""
    from biomass.commands.pack import main as pack
    from tests.torture import kit

    folder = tmp_path_factory.mktemp("kit")
    pack([str(kit.write_screen(folder / "screen")), str(folder / "store"), "--workers", "1"])
    kit.write_h5(folder / "h5")
    return folder


@pytest.mark.parametrize(
    ("kind", "prepare", "numbers"),
    [
        ("image_rgb8.png", images.of_kind("rgb8.png"), range(4)),
        ("image_plain16.tif", images.of_kind("plain16.tif"), range(4)),
        ("image_u16.npy", images.of_kind("u16.npy"), range(4)),
        ("manifest", tables.manifest, range(4)),
        ("archive_bytes", archives.of_bytes, range(6)),
        ("archive_crafted", archives.crafted, range(3)),
    ],
)
def test_damage_is_one_line_or_does_no_harm(kit, tmp_path, kind, prepare, numbers):
    for number in numbers:
        finding = run_case(Case(f"inputs/{kind}/{number}", prepare), 0, kit, tmp_path)
        assert finding.outcome in GOOD, finding


def test_a_command_that_is_killed_at_any_write_goes_on(kit, tmp_path):
    make_reference(kit, "pack")
    for number in range(3):
        folder = tmp_path / str(number)
        found = kills.drive("pack", "saving")(random_of(0, f"{number}"), folder, kit)
        assert found[0] in GOOD, found


def test_the_case_list_is_as_long_as_it_says_and_the_same_again():
    names = [case.name for case in all_cases(0, 60)]
    assert names == [case.name for case in all_cases(0, 60)]
    assert len(set(names)) == len(names)
    assert {name.split("/")[0] for name in names} >= {"kills", "checkpoints", "inputs"}


def test_the_table_counts():
    outcomes = (Outcome.RIGHT, Outcome.RIGHT, Outcome.CRASH)
    lines = table_of([Finding(f"inputs/png/{i}", one, "", "", 0.0) for i, one in enumerate(outcomes)]).splitlines()
    assert lines[2].split() == ["inputs/png", "2", ".", ".", ".", "1", ".", ".", ".", "3"]


def raises() -> None:
    raise ValueError("unforeseen")


def touches(folder: Path) -> Trial:
    return Trial("", lambda: (folder / CANARY).touch())


SEEN = {
    Outcome.RIGHT: lambda folder: Trial("", lambda: 3, lambda value: None if value == 3 else "no"),
    Outcome.ADVISED: lambda folder: Trial(
        "", lambda: (_ for _ in ()).throw(SystemExit("error: 'a' is damaged: copy it again"))
    ),
    Outcome.BARE: lambda folder: Trial("", lambda: (_ for _ in ()).throw(SystemExit("error: it failed"))),
    Outcome.TRACEBACK: lambda folder: Trial("", raises),
    Outcome.CRASH: lambda folder: Trial("", lambda: os.kill(os.getpid(), signal.SIGSEGV)),
    Outcome.HANG: lambda folder: Trial("", lambda: time.sleep(100)),
    Outcome.SILENT: lambda folder: Trial("", lambda: 3, lambda value: "it is 3"),
    Outcome.PAYLOAD: touches,
}


@pytest.mark.parametrize("outcome", SEEN, ids=str)
def test_every_outcome_is_seen(tmp_path, outcome, monkeypatch):
    monkeypatch.setattr(forks, "STILL", 0.3)
    finding = run_case(Case("a/b/0", lambda rng, folder, kit: SEEN[outcome](folder)), 0, tmp_path, tmp_path)
    assert finding.outcome is outcome
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
