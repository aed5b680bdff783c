"""Command lines and YAML files with anything in them, for every script and tool."""

import random
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from tests.torture.cases import ROOT, Case, Prepare, Trial, command
from tests.torture.kit import CELLS, PROBE, SCREEN, SIMCLR, SUPERVISED, TRAIN

BASES: dict[str, tuple[str, ...]] = {
    "train_erm": (*TRAIN, "num_epochs=1", "run_name=r"),
    "train_simclr": (*SIMCLR, "num_epochs=1", "run_name=r"),
    "train_supervised_cell": (*SUPERVISED, "num_epochs=1", "run_name=r"),
    "train_classifier": (*PROBE, "num_epochs=1", "run_name=r"),
    "predict": (*SCREEN, "model_path=net", "run_name=r"),
    "profile": (*CELLS, "model_path=encoder", "run_name=r", "report=false"),
    "calibrate": (*CELLS, "model_path=encoder", "run_name=r"),
    "stress": (
        *SCREEN,
        "model_path=net",
        "run_name=r",
        "words=[running]",
        "repeats=1",
        "axes.effect=[]",
        "report=false",
    ),
    "tune": (*SCREEN, "model_path=net", "run_name=r", "fit_plates=1"),
    "transfer_bbbc021": ("model_path=encoder", "run_name=r", "dataloaders=simulated_bbbc021", "figures=false"),
}
"""A short run of every script and tool that takes overrides."""

VALUES = (
    *(
        "",
        "null",
        "true",
        "false",
        "0",
        "-1",
        "1",
        "1.5",
        "1e30",
        "1e-30",
        "nan",
        "inf",
        "-inf",
        "9" * 30,
        "0x10",
        "1_000",
    ),
    *(
        "abc",
        "'abc'",
        '"a',
        "[",
        "[]",
        "[1,2",
        "{",
        "{}",
        "{a:1}",
        "{a:{b:[]}}",
        "[null]",
        "[[]]",
        "[a,b]",
        "[1,a,null]",
        "(1)",
    ),
    *(
        "${",
        "${x}",
        "${oc.env:HOME}",
        "${oc.env:NOTHING}",
        "${hydra:job.name}",
        "${.}",
        "${dataloaders}",
        "$x",
        "${a:b}",
    ),
    *(
        "=",
        "==",
        "a=b",
        "a,b",
        ",",
        ";",
        "|",
        "&",
        "~",
        "!",
        "@",
        "#",
        "%",
        "*",
        "\\",
        "'",
        "`",
        " ",
        "  x",
        "a b",
        "a\tb",
        "a\nb",
    ),
    *(
        "/dev/null",
        "/etc/passwd",
        "/proc/self/mem",
        "..",
        "../..",
        "/",
        ".",
        "-x",
        "--help",
        "net",
        "latest",
        "nothing.pt",
    ),
    *(
        "é",
        "µ",
        "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
        "\u202e",
        "\x1b[31m",
        "\x07",
        "a" * 300,
        "choice(1,2)",
        "range(3)",
        "glob(*)",
        "interval(0,1)",
    ),
)
"""What may stand behind an equals sign."""


def keys_of(script: str) -> list[str]:
    """Keys that a script's YAML has, with those of the groups it takes."""
    found: list[str] = []
    for path in (
        ROOT / "configs" / f"{script}.yaml",
        ROOT / "configs/trainer/default.yaml",
        ROOT / "configs/dataloaders/simulated.yaml",
    ):
        above: list[tuple[int, str]] = []
        section = "" if path.stem == script else f"{path.parent.name}."
        for line in path.read_text().splitlines():
            match = re.match(r"( *)([a-z_]+):", line)
            if match and match[2] != "hydra":
                above = [one for one in above if one[0] < len(match[1])]
                above.append((len(match[1]), match[2]))
                found.append(section + ".".join(name for _, name in above))
    return [key for key in dict.fromkeys(found) if key.partition(".")[0] != "defaults"]


def overrides(script: str) -> st.SearchStrategy[list[str]]:
    """One or two words for a script: keys that are there or not, with anything behind them, or anything at all."""
    keys = st.sampled_from(keys_of(script)) | st.sampled_from(
        [
            "nothing",
            "model",
            "dataloaders",
            "trainer.nothing",
            "_target_",
            "hydra",
            "hydra.run.dir",
            "hydra/launcher",
            "+method",
            "dataloaders",
            "experiment",
            "transforms",
            "",
        ]
    )
    text = st.text(st.sampled_from(string.printable + "µé²\x1b\x7f\x85\u202e\u2028"), max_size=12)
    values = (
        st.sampled_from(VALUES)
        | text
        | st.integers().map(str)
        | st.floats().map(str)
        | st.lists(st.integers(-2, 3)).map(str)
    )
    word = st.builds(
        lambda sign, key, value: f"{sign}{key}={value}", st.sampled_from(["", "", "", "", "+", "++", "~"]), keys, values
    )
    one = st.integers(0, 9).flatmap(lambda tenth: text if tenth == 9 else word)
    return st.lists(one, min_size=1, max_size=2)


def drawn(strategy: st.SearchStrategy[list[str]], number: int, seed: int) -> list[list[str]]:
    """So many examples, the same for the same seed."""
    found: list[list[str]] = []

    @seeded(seed)
    @settings(
        max_examples=number,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(strategy)
    def collect(words: list[str]) -> None:
        found.append(words)

    collect()
    return found[:number]


def only_begin() -> None:
    """Let no script train or measure: an override that is understood is right when everything is built."""
    from biomass.experiment import Experiment
    from biomass.training import RunLogger

    def accepted(*_: Any, **__: Any) -> None:
        raise SystemExit(0)

    Experiment.train = accepted  # type: ignore[method-assign]
    RunLogger.__enter__ = accepted  # type: ignore[method-assign, assignment]


def links(kit: Path) -> None:
    """Checkpoints of the kit in this folder."""
    for run in ("net", "encoder"):
        place = Path("checkpoints") / run
        place.mkdir(parents=True)
        (place / "last.pt").symlink_to(kit / "checkpoints" / run / "last.pt")


def in_folder(name: str, words: list[str], kit: Path) -> Callable[[], None]:
    """What begins a command in a folder with the kit's checkpoints."""

    def act() -> None:
        only_begin()
        links(kit)
        command(name, *words)()

    return act


def of_script(script: str, words: list[str]) -> Prepare:
    """A script with some overrides behind those of a short run."""

    def prepare(rng: random.Random, folder: Path, kit: Path) -> Trial:
        clean = [word.replace("\x00", "") for word in words]
        return Trial(f"{script} … {clean!r}", in_folder(script, [*BASES[script], *clean], kit))

    return prepare


def script_cases(number: int, seed: int) -> list[Case]:
    """So many command lines, over all scripts."""
    each = max(1, number // len(BASES))
    return [
        Case(f"inputs/overrides_{script}/{i}", of_script(script, words), 60)
        for number_of_script, script in enumerate(BASES)
        for i, words in enumerate(drawn(overrides(script), each, 100 * seed + number_of_script))
    ]
