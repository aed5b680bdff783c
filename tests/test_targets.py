"""What a section with a target may call, with which arguments; and what a file may say of Hydra itself."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from biomass.config import Config, build
from biomass.errors import CheckpointError, ConfigError
from biomass.experiment import trained_transform
from biomass.notation import Arguments
from biomass.signatures import check_call
from biomass.targets import find_target
from biomass.trust import foreign_settings

ERRORS = (ConfigError, HydraException, RecursionError, ValueError)
CROP = "biomass.transforms.RandomCrop"


def read(path: str | Path, *, time: int | None = None, depths: Literal["error", "scale"] = "error") -> tuple[Any, ...]:
    """Somebody's own source."""
    return path, time, depths


def fails() -> None:
    raise RuntimeError("of its own")


def config(*typed: str, **values: Any) -> Config:
    return Config(OmegaConf.create(values), typed)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "hydra.utils.get_method",
        "biomass.atomic.whole_folder",
        "biomass.datasets.manifest.Path",
        "biomass.datasets.manifest.os.system",
        "biomass.datasets.rxrx1.prepare_rxrx1",
        "biomass.transforms.compose.torch.load",
        "biomass.transforms.Transform",
        "biomass.transforms",
        "biomass.",
        "",
        "../x",
        5,
        None,
        ["os.system"],
    ],
)
@pytest.mark.parametrize("place", ["", "dataloaders.source", "transforms.train.0", "model"])
def test_a_target_is_a_source_or_a_transform_of_this_package(name, place):
    with pytest.raises(ConfigError) as caught:
        find_target(name, (), place)
    assert "_target_" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_source_is_no_transform_and_a_transform_no_source():
    source = "biomass.datasets.manifest.load_manifest"
    assert find_target(source, (), "dataloaders.source").__name__ == "load_manifest"
    assert find_target(CROP, (), "transforms.eval.1").__name__ == "RandomCrop"
    for name, place in ((source, "transforms.train.0"), (CROP, "dataloaders.source")):
        with pytest.raises(ConfigError, match="it must be"):
            find_target(name, (), place)


@pytest.mark.parametrize(("name", "near"), [(f"{CROP}s", "RandomCrop"), ("biomass.datasets.manifst.x", "manifest")])
def test_a_misspelt_target_is_told_the_nearest(name, near):
    with pytest.raises(ConfigError, match=f"did you mean '.*{near}'"):
        find_target(name)


def test_code_of_others_is_made_only_if_it_is_typed(monkeypatch):
    node = {"_target_": f"{__name__}.read", "path": 2024}
    assert build(config(f"own_code=[{__name__}]", source=node).source) == ("2024", None, "error")
    assert build(config(f"own_code={__name__}.read", source=node).source, time=3) == ("2024", 3, "error")
    with pytest.raises(ConfigError, match="only if you name it") as caught:
        config(source=node)
    assert "own_code=" in config(own_code=[]).explain(caught.value)
    with pytest.raises(ConfigError, match=r"own_code names .* in a file.*type own_code=\["):
        config(source=node, own_code=[__name__])
    with pytest.raises(ConfigError, match="only if you name it"):
        build(node)  # of a checkpoint, or of a run's folder


def test_errors_of_own_code_are_one_line():
    node = {"_target_": f"{__name__}.fails"}
    with pytest.raises(ConfigError, match=r"source._target_ .* failed .RuntimeError: of its own"):
        build(config(f"own_code=[{__name__}]", source=node).source)


def test_a_network_of_own_code_is_not_taken_from_a_file():
    model = {"key": "package.module:function"}
    for typed in ("own_code=[package]", "model.key=package.module:function"):
        assert config(typed, model=model).model.key == model["key"]
    with pytest.raises(ConfigError, match=r"in a file.*type model.key=package"):
        config(model=model)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "path is missing"),
        ({"path": "a", "tme": 1}, "tme is unknown.*did you mean 'time'"),
        ({"path": "a", "time": "1"}, 'time is "1"; it must be a whole number or null'),
        ({"path": "a", "time": True}, "time is true"),
        ({"path": "a", "time": 1.5}, "time is 1.5"),
        ({"path": "a", "depths": "scal"}, "depths is \"scal\"; it must be error or scale; did you mean 'scale'"),
        ({"path": ["a"]}, r'path is \["a"\]; it must be a name or path'),
        ({"path": None}, "path is null"),
        ({"path": ""}, 'path is ""'),
        ({"path": {"a": "x" * 100_000}}, r"path is .*characters\); it must be a name or path"),
    ],
)
def test_arguments_are_compared_with_the_signature(values, message):
    with pytest.raises(ConfigError, match=f"^s.{message}") as caught:
        check_call(read, values, "s.")
    assert len(str(caught.value)) < 300


def test_lists_and_sections_are_compared_item_by_item():
    def take(names: Sequence[str], of: Mapping[str, int], pair: tuple[float, float] = (0, 1)) -> None: ...

    given = {"names": ["a", 7], "of": {"b": 1}, "pair": [0, 2]}
    assert check_call(take, given) == given | {"names": ["a", "7"]}
    for wrong in (
        {"names": "a"},
        {"names": [None]},
        {"of": {"b": "c"}},
        {"of": [1]},
        {"pair": [1]},
        {"pair": [1, float("nan")]},
    ):
        with pytest.raises(ConfigError, match=f"^{next(iter(wrong))} is .*it must be"):
            check_call(take, given | wrong)


@pytest.mark.parametrize("name", ["_args_", "_partial_", "_recursive_", "_convert_"])
def test_words_of_hydra_are_refused(name):
    with pytest.raises(ConfigError, match=f"t.0.{name} is not taken"):
        build(config(t=[{"_target_": CROP, "size": 8, name: True}]).t[0])


def test_a_checkpoint_names_transforms_alone():
    for target in ("os.system", "biomass.datasets.simulated.load_simulated"):
        for node in (
            {"_target_": target},
            {"_target_": "biomass.transforms.Compose", "transforms": [{"_target_": target}]},
        ):
            with pytest.raises(CheckpointError, match=target):
                trained_transform({"transforms": {"eval": [node]}, "own_code": ["os"]}, Path("a.pt"))


# ---- what a file may say of Hydra

HOSTILE = [
    "callbacks: {x: {_target_: os.system, command: touch CALLED}}",
    "callbacks: {folders: {_target_: os.system}}",
    "job_logging: {handlers: {x: {class: subprocess.Popen, args: [touch, CALLED]}}}",
    "job_logging: {formatters: {x: {(): os.system, command: touch CALLED}}}",
    "job_logging: {handlers: {file: {filename: ../elsewhere}}}",
    "job_logging: {handlers: {console: {stream: 'ext://os.environ'}}}",
    "job: {env_set: {PYTHONPATH: elsewhere}}",
    "sweeper: {params: {own_code: os}}",
    "sweeper: {params: {+hydra.callbacks.x._target_: os.system}}",
    "sweeper: {params: {model.key: 'os:getcwd'}}",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_preset_cannot_make_hydra_run_code(text, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\nhydra:\n  {text}\n")
    path = f"hydra.searchpath=[file://{tmp_path}]"
    with (
        initialize_config_dir(str(ROOT / "configs"), version_base="1.3"),
        pytest.raises(ConfigError, match="in a file"),
    ):
        compose("train_erm", [path, "+experiment=mine"])


def test_the_command_line_may_say_it():
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        compose("train_erm", ["+hydra.job.env_set.A=b", "+hydra.callbacks.x._target_=package.Callback"])


def test_a_slurm_script_is_typed():
    settings = {"launcher": {"_target_": "hydra_plugins.a.B", "setup": ["module load cuda"], "n_jobs": 2}}
    assert dict(foreign_settings(settings)) == {"hydra.launcher.setup": ["module load cuda"]} | {
        "hydra.launcher.setup.0": "module load cuda"
    }


# ---- files that cannot be read


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n\tb: 1\n", "line 2 .*tab"),
        ("seed: 1\nseed: 2\n", "line 2 .*duplicate key seed.*take one"),
        ("- a\n", r'holds \["a"\], not keys'),
        ("model: key: a\n", "line 1"),
        ("a: *b\n", "line 1 .*'b'"),
        ("seed: !!python/object/apply:os.system [false]\n", "line 1"),
        ("a: &a [*a]\n", "anchor"),
        (
            "a: &a [1,1,1,1,1,1,1,1]\n"
            + "".join(f"k{n}: &{n} [{','.join([f'*{n - 1 if n else chr(97)}'] * 8)}]\n" for n in range(9)),
            "20,000",
        ),
        ("run_name: \xe9\n", "UTF-8"),
        ("defaults: 5\n", "list"),
        ("defaults: [a]\n", "chooses itself"),
    ],
)
def test_a_bad_yaml_is_one_line_that_names_file_and_line(text, message, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_bytes(text.encode("latin-1"))
    with initialize_config_dir(str(tmp_path), version_base="1.3"), pytest.raises(ERRORS) as caught:
        compose("a")
    said = str(caught.value) if isinstance(caught.value, ConfigError) else Arguments([], []).explain(caught.value)
    assert "\n" not in said
    assert re.search(message, said)
