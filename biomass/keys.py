"""The one table of keys: what the value of a key may be, and whether a resumed run may have another one.

Default and meaning of a key stand in the YAML of the scripts that have it, with a comment on every line. A new key
takes three edits: the YAML, a line in :data:`KEYS`, and the script that reads it.

:data:`ADVICE` says which key of a script an error refers to. Only this module, the scripts and the commands know keys.
"""

import math
import re
from collections.abc import Callable, Sequence
from types import UnionType
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """What the value of a key may be.

    Attributes:
        types: of the value; true and false do not count as numbers here.
        what: the same in words, for the error that says "it must be …".
        least: the smallest number allowed.
        item: what each element of a list may be.
        null: whether null is a value.
        text: a number or true stands for its text, as a folder may be called 20261124.
        target: a section needs a ``_target_``.
        changes: a resumed run may have another value.
        places: arguments of a target which a resumed run may have other values of.
        names: arguments of a target that hold paths, or names of plates and the like: text, whatever they look like.
        unset: what null means, and what a run did that began before the key existed.
        words: what a word may be: words, and tables of words as :func:`biomass.words.words_in` takes them.
    """

    types: type | UnionType
    what: str
    least: float = -math.inf
    item: "Kind | None" = None
    null: bool = False
    text: bool = False
    target: bool = False
    changes: bool = False
    places: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    unset: Any = None
    words: tuple[str, ...] = ()

    def of(self, *words: str) -> "Kind":
        """The same, and one of some words, or of the words of tables, such as ``models.poolers.POOLERS``."""
        return self._replace(words=words)

    def or_null(self, unset: Any = None) -> "Kind":
        """The same, or null, which means ``unset``."""
        return self._replace(what=f"{self.what} or null", null=True, unset=unset)

    def means_method(self) -> "Kind":
        """The same; it is part of a :class:`biomass.norms.Method`, and resumed runs are compared by that."""
        return self.may_change()

    def may_change(self) -> "Kind":
        """The same, and a resumed run may have another value."""
        return self._replace(changes=True)


FLAG = Kind(bool, "true or false")
WORD = Kind(str, "a word")
NAME = Kind(str, "a name or path", text=True)
NATURAL = Kind(int, "a whole number of at least 0", least=0)
COUNT = Kind(int, "a whole number of at least 1", least=1)
NUMBER = Kind(int | float, "a number")
STATISTICS = WORD.of("norms.statistics.WORDS")
POSITIVE = Kind(int | float, "a number of at least 0", least=0)
WORDS = Kind(list, "a list of words", item=WORD)
WIDTHS = Kind(list, "a list of whole numbers of at least 1", item=COUNT)
PRECISION = Kind(int | str, "32, bf16 or 16")
SECTION = Kind(dict, "a section of keys")
SHARD = NAME.or_null().may_change()
SEVERAL = Kind(str | list, "a name or path, or a list of them", item=NAME, text=True)
TARGET = Kind(dict, "a section with a _target_", target=True)
TARGETS = Kind(list, "a list of sections with a _target_", item=TARGET)
_PATHS = "root_dir root img_dir image_dir summary_file metadata_file nuclei_dir cache_dir store path"
_NAMES = "image channels cell_type classes splits control"
PLACES = frozenset([*_PATHS.split(), "download", "on_bad_image"])
"""Arguments of a reader that say where images lie, and not which they are."""
READER = TARGET._replace(
    places=PLACES,
    names=frozenset([*_PATHS.split(), *_NAMES.split()]),
)

KEYS = {
    "run_name": NAME.or_null().may_change(),
    "save_key": NAME.or_null().may_change(),
    "seed": NATURAL,
    "resume": NAME._replace(what="auto, a checkpoint").or_null().may_change(),
    "other_data": FLAG.may_change(),
    "own_code": WORDS.or_null().may_change(),
    "device": WORD.may_change(),
    "devices": COUNT.may_change(),
    "precision": PRECISION,
    # the network
    "model_path": SEVERAL.or_null().may_change(),  # a probe compares the weights instead
    "sup_model_path": NAME.or_null().may_change(),
    "frozen_model_path": NAME.or_null(),
    "model": SECTION,
    "model.key": WORD,
    "model.d_out": COUNT.or_null(),
    "model.standardize": FLAG._replace(unset=False),
    "model.norm": WORD.of("models.image_norms.NORMS")._replace(unset="batch"),
    "model.pretrained": FLAG.or_null(unset=False),
    "model.channels": WORD.of("models.adapt.CHANNELS").or_null(unset="repeat"),
    "model.expects": Kind(list, "a list of names", item=NAME, text=True).or_null(),
    "model.as_trained": FLAG.or_null(unset=False),
    "model.options": Kind(dict, "a section of keyword arguments").or_null(),
    "model.projector": WIDTHS,
    "use_projs": FLAG,
    "model_train_mode": FLAG.means_method(),
    "normalize": FLAG,
    "pooler": WORD.of("models.poolers.POOLERS"),
    "in_features": COUNT.or_null(),
    "out_features": COUNT.or_null(),
    "channels": WORDS.or_null(),
    # the data
    "dataloaders": SECTION,
    "dataloaders.root_dir": NAME.may_change(),
    "dataloaders.img_dir": NAME.or_null().may_change(),
    "dataloaders.summary_file": NAME.or_null().may_change(),
    "dataloaders.metadata_file": NAME.or_null().may_change(),
    "dataloaders.store": NAME.or_null().may_change(),
    "dataloaders.cache_dir": NAME.or_null().may_change(),
    "dataloaders.plates": SEVERAL._replace(what="a name, a list of names").or_null(),
    "dataloaders.source": READER,
    "dataloaders.simulated": READER,
    "dataloaders.num_workers": NATURAL.may_change(),
    "dataloaders.on_bad_image": WORD.may_change(),
    "transforms": SECTION,
    "transforms.train": TARGETS,
    "transforms.eval": TARGETS.or_null(),
    # batches
    "dataloaders.sampler": WORD.of("training.loaders.SAMPLERS").means_method(),
    "dataloaders.mode": WORD.of("training.loaders.MODES"),
    "dataloaders.instance": WORDS,
    "dataloaders.num_img": COUNT,
    "dataloaders.num_plates_per_batch": COUNT.means_method(),
    "dataloaders.num_plate_parts": COUNT.or_null(),
    "dataloaders.train_groupby": WORDS.or_null().means_method(),
    "dataloaders.max_groups": COUNT.or_null().means_method(),
    "dataloaders.num_controls": NATURAL.or_null(unset=0).means_method(),
    "dataloaders.eval_plate_sampler": FLAG.means_method(),
    "dataloaders.eval_groupby": WORDS.means_method(),
    "dataloaders.eval_splits": WORDS,
    "train_batch_size": COUNT.or_null(),
    "eval_batch_size": COUNT.or_null().may_change(),
    "encode_batch_size": COUNT.or_null(),
    "rows": WORD.or_null(),
    # statistics of batch norm
    "statistics": SECTION,
    "statistics.train": STATISTICS.or_null().means_method(),
    "statistics.eval": STATISTICS.or_null().means_method(),
    "statistics.by": WORDS.or_null().means_method(),
    "statistics.controls": WORD.of("vocabulary.KINDS").or_null().means_method(),
    "calibration": NAME.or_null(),
    "statistics_rows": WORD.of("all", "norms.statistics.WORDS")._replace(unset="all").means_method(),
    "use_train_at_eval": FLAG.means_method(),
    # training
    "objective": SECTION,
    "objective.loss_rows": WORD.of("objectives.classification.LOSS_ROWS")._replace(unset="all"),
    "objective.penalty": WORD.of("objectives.alignment.PENALTIES").or_null(),
    "objective.penalty_weight": POSITIVE._replace(unset=1.0),
    "num_views": COUNT,
    "temperature": POSITIVE,
    "gather": FLAG,
    "learning_rate": POSITIVE,
    "weight_decay": POSITIVE,
    "num_epochs": COUNT.may_change(),
    "num_warmup_epochs": NATURAL,
    "compute_train_acc": FLAG,
    "shuffle_labels": FLAG._replace(unset=False),
    "save_model": FLAG.may_change(),
    "trainer": SECTION,
    "trainer.precision": PRECISION.may_change(),
    "trainer.devices": COUNT.may_change(),
    "trainer.strategy": WORD.may_change(),
    "trainer.num_nodes": COUNT.may_change(),
    "trainer.compile": FLAG.may_change(),
    "trainer.resident": FLAG.may_change(),
    "trainer.clip": NUMBER.or_null().may_change(),
    "trainer.accumulate": COUNT.may_change(),  # batches a step of all devices must stay
    "trainer.log_every": COUNT.may_change(),
    "trainer.evaluate_every": COUNT.may_change(),
    "trainer.max_steps": NATURAL.or_null().may_change(),
    "trainer.monitor": WORD.may_change(),
    "trainer.measure_plates": NATURAL.may_change(),
    # profiles
    "features": WORD.of("profiling.makers.MAKERS"),
    "classical": SECTION,
    "classical.channel": NAME,
    "classical.diameter": POSITIVE.or_null(),
    "anndata": FLAG,
    "compare": WORDS,
    "shard": SHARD,
    "report": FLAG.may_change(),
    "postprocess": SECTION,
    "postprocess.how": WORD.of("evaluation.postprocess.CORRECTIONS"),
    "postprocess.position": FLAG,
    "postprocess.controls": WORD,
    "postprocess.fit_on": Kind(str | list, "a name, a list of names", item=NAME, text=True).or_null(),
    "postprocess.by": WORDS.or_null(),
    "postprocess.epsilon": POSITIVE.or_null(),
    "postprocess.load": NAME.or_null(),
    # tuning
    "train_split": NAME,
    "measure_plates": COUNT,
    "fit_plates": COUNT,
    # the stress test
    "words": WORDS,
    "axes": SECTION,
    "axes.wells": Kind(list, "a list of whole numbers of at least 1, or null for all", item=COUNT.or_null()),
    "axes.label_shift": Kind(list, "a list of numbers, or null for none", item=NUMBER.or_null()),
    "axes.controls": Kind(list, "a list of whole numbers of at least 0, or null for all", item=NATURAL.or_null()),
    "axes.effect": Kind(list, "a list of numbers of at least 0", item=POSITIVE),
    "axes.prospective": Kind(list, "a list of whole numbers of at least 1, or null for all", item=COUNT.or_null()),
    "base": SECTION,
    "base.wells": COUNT.or_null(),
    "base.label_shift": NUMBER.or_null(),
    "base.controls": NATURAL.or_null(),
    "repeats": COUNT,
    # predictions
    "encoder_path": NAME.or_null(),
    "measure_again": FLAG,
    "watch": FLAG,
    "watch_seconds": POSITIVE,
    "watch_stop_after": POSITIVE.or_null(),
    # the transfer to BBBC021
    "normalizations": WORDS.of("frozen", "all", "norms.statistics.WORDS"),
    "postprocessings": WORDS.of("evaluation.transfer.POSTPROCESSINGS"),
    "metric": WORD,
    "monitor": WORD.or_null(),
    "figures": FLAG,
}
"""Every key of the scripts and tools. What is below a ``_target_`` is the business of that target."""


EVALUATED, MONITORED, OUTPUTS = "dataloaders.eval_splits", "trainer.monitor", "model.d_out"
"""The keys of which it matters whether a user set them, or nobody did."""

PREPARED = "transforms.eval"
"""The key that says what is done to an image where nothing is random."""

PUBLISHED_OUTPUTS = {"train_erm": 1139}
"""Outputs of the published network, which are for its own screen: on another, nobody means them without typing them."""

EVAL_SPLITS = {
    "train_erm": ["val", "test", "id_test"],
    "train_simclr": ["val"],
    "train_supervised_cell": ["val", "test", "iid_val"],
    "train_classifier": ["val", "test", "iid_val"],
}
"""What a script evaluates if nobody says otherwise: of these splits, one that a screen lacks is left out."""


NEXT = {
    "train_erm": ("biomass predict model_path={run}", "biomass profile model_path={run}"),
    "train_simclr": ("python train_classifier.py model_path={run}", "biomass profile model_path={run}"),
    "train_supervised_cell": (
        "python train_classifier.py sup_model_path={run}",
        "biomass predict model_path={run}",
    ),
    "train_classifier": ("biomass compare runs/{run}",),
}
"""What users of a script type next: ``{run}`` is the name of its run; where its images are follows."""

_DATA = re.compile(r"dataloaders(=|\.(root_dir|store|img_dir|summary_file|metadata_file|cache_dir|plates|source\.))")


def data_overrides(overrides: Sequence[str]) -> list[str]:
    """Those of some overrides that say where images are.

    >>> data_overrides(["dataloaders=manifest", "dataloaders.sampler=plate", "dataloaders.root_dir=my_screen"])
    ['dataloaders=manifest', 'dataloaders.root_dir=my_screen']
    """
    return [text for text in overrides if _DATA.match(text.lstrip("+"))]


def may_change(key: str) -> bool:
    """Whether a resumed run may have another value of a key, or of an argument of a target.

    >>> may_change("num_epochs"), may_change("learning_rate"), may_change("dataloaders.source.root_dir")
    (True, False, True)
    """
    section, _, argument = key.rpartition(".")
    return KEYS[key].changes if key in KEYS else section in KEYS and argument in KEYS[section].places


def holds_names(key: str) -> bool:
    """Whether the value of a key, or of an argument of a target, is made of names.

    >>> holds_names("dataloaders.source.splits.test"), holds_names("learning_rate")
    (True, False)
    """
    if key in KEYS:
        return KEYS[key].text
    targets = {target: kind.names for target, kind in KEYS.items() if kind.names}
    return any(re.match(rf"{target}\.({'|'.join(names)})(\.|$)", key) for target, names in targets.items())


class Advice(NamedTuple):
    """What an error refers to, for the user of a script.

    Attributes:
        text: what to set, with the place of the key.
        keys: that mean it, of one script or another; the first that the script at hand has is named.
    """

    text: str
    keys: tuple[str, ...]


_SOURCE = "dataloaders.source"

ADVICE = {
    # files
    "skip": Advice("or set {key}=skip to leave it out", ("dataloaders.on_bad_image",)),
    "download": Advice("or set {key}=true", (f"{_SOURCE}.download",)),
    "root_dir": Advice("{key}, or the environment variable BIOMASS_DATA, says where it is", ("dataloaders.root_dir",)),
    "cache_dir": Advice("set {key} to a folder that can be written", ("dataloaders.cache_dir",)),
    "img_dir": Advice("the folder of images is {key}", ("dataloaders.img_dir", f"{_SOURCE}.image_dir")),
    "image_dir": Advice("the folder of images is {key}", (f"{_SOURCE}.image_dir",)),
    "summary_file": Advice("correct {key}, or set it to null", ("dataloaders.summary_file",)),
    "metadata_file": Advice("correct {key}, or set it to null", ("dataloaders.metadata_file",)),
    "left_over": Advice("the nuclei are read from {key}", (f"{_SOURCE}.nuclei_dir",)),
    "nuclei": Advice("the nuclei are read from {key}", (f"{_SOURCE}.nuclei_dir",)),
    "store": Advice("the store is {key}", ("dataloaders.store", f"{_SOURCE}.store")),
    # the table of a screen
    "path": Advice("the table is {key}, relative to dataloaders.root_dir", (f"{_SOURCE}.path",)),
    "columns": Advice("name it in {key}", (f"{_SOURCE}.columns",)),
    "splits": Advice("those used are in {key}", ("dataloaders.eval_splits", f"{_SOURCE}.splits")),
    "no_splits": Advice("{key}=plate or {key}=experiment shares out whole ones", (f"{_SOURCE}.splits",)),
    "label": Advice("the labels are {key}", (f"{_SOURCE}.columns.label",)),
    "control": Advice("the controls are {key}", (f"{_SOURCE}.control",)),
    "classes": Advice("the classes are {key}", (f"{_SOURCE}.classes",)),
    "plates": Advice("the plates are {key}", ("dataloaders.plates", f"{_SOURCE}.plates")),
    "image": Advice("the columns of image files are {key}", (f"{_SOURCE}.image",)),
    "axes": Advice("set {key}, to CHW for example", (f"{_SOURCE}.axes",)),
    "z": Advice("set {key}, to max for example", (f"{_SOURCE}.z",)),
    "time": Advice("set {key}, to 0 for example", (f"{_SOURCE}.time",)),
    "depths": Advice("or set {key}=scale", (f"{_SOURCE}.depths",)),
    "sizes": Advice("or set {key} to crop or pad", (f"{_SOURCE}.sizes",)),
    "channels": Advice("the channels are {key}", (f"{_SOURCE}.channels", "channels")),
    "other_channels": Advice(
        f"name them alike in {{key}}, or, where every channel has a file of its own, in {_SOURCE}.image",
        (f"{_SOURCE}.channels", "channels"),
    ),
    "encoder_channels": Advice("set {key}, or leave them to the checkpoint", ("channels",)),
    "channel": Advice("the channels are {key}", (f"{_SOURCE}.channels",)),
    # batches
    "max_groups": Advice("set {key}", ("dataloaders.max_groups", "dataloaders.num_plates_per_batch")),
    "batch_size": Advice("set {key}", ("train_batch_size", "encode_batch_size")),
    "eval_batch_size": Advice("set {key}", ("eval_batch_size", "encode_batch_size")),
    "num_controls": Advice("set {key}", ("dataloaders.num_controls",)),
    "parts": Advice("set {key}", ("dataloaders.num_plate_parts",)),
    "num_img": Advice("set {key} and num_views", ("dataloaders.num_img",)),
    "mode": Advice("set {key}", ("dataloaders.mode",)),
    "sampler": Advice("set {key}", ("dataloaders.sampler", "dataloaders.train_groupby")),
    "instance": Advice("set {key}", ("dataloaders.instance",)),
    "negatives": Advice("raise {key}, or look at instance and sampler of the dataloaders", ("train_batch_size",)),
    # network and training
    "d_out": Advice("set {key}", ("model.d_out", "out_features")),
    "out_features": Advice("set {key}", ("out_features",)),
    "in_features": Advice("leave {key} out", ("in_features",)),
    "norm": Advice("set {key}", ("model.norm",)),
    "model_path": Advice("set {key} or sup_model_path", ("model_path",)),
    "use_projs": Advice("set {key}=false", ("use_projs",)),
    "network": Advice(
        "give {key}=… (a file, the name of a run, or latest), or model.key=… and model.pretrained=true",
        ("model_path",),
    ),
    "checkpoint": Advice("give {key}=… (a file, the name of a run, or latest)", ("model_path",)),
    "widen": Advice("choose repeat, sum or each for {key}", ("model.channels",)),
    "expects": Advice("name them, in the network's order, in {key}=[…]", ("model.expects",)),
    "own_target": Advice("for code that you trust, type {key}=[its package] on the command line", ("own_code",)),
    "own_code": Advice("its arguments are model.options, its name {key}", ("model.key",)),
    "model_key": Advice("set {key} to the network it belongs to", ("model.key",)),
    "transforms": Advice("take it out of {key}", ("transforms.eval",)),
    "large": Advice(
        "take transforms=large (random crops of 512 pixels) or transforms=resized, or change {key}",
        ("transforms.train",),
    ),
    "seen": Advice("raise {key} and num_views, or take more epochs", ("dataloaders.num_img",)),
    "evaluate_every": Advice("set {key}", ("trainer.evaluate_every",)),
    "learning": Advice("look at {key}, the labels and the images that TensorBoard shows", ("learning_rate",)),
    "own_transforms": Advice("set {key}", ("transforms.eval",)),
    "encoder_path": Advice("set {key}", ("encoder_path",)),
    "pretrained": Advice("or set {key}=false", ("model.pretrained",)),
    "resident": Advice("set {key}=false", ("trainer.resident",)),
    "statistics": Advice(
        "statistics are set by {key}", ("normalizations", "statistics", "statistics_rows", "model_train_mode")
    ),
    "method": Advice("statistics are set by {key}", ("statistics", "statistics_rows", "model_train_mode")),
    "tune": Advice("run biomass tune {key}=…, which measures and stores them", ("model_path", "run_name")),
    "calibrate": Advice("run biomass calibrate {key}=…, or name a file in calibration", ("model_path",)),
    "compare": Advice("the words to compare are those of {key}", ("compare",)),
    "anndata": Advice("set {key}=false", ("anndata",)),
    "postprocess": Advice("the post-processing is {key}", ("postprocess",)),
    "dna": Advice("the stain of DNA is {key}", ("classical.channel",)),
    "penalty": Advice("set {key}", ("objective.penalty",)),
    "devices": Advice("set {key}=1", ("trainer.devices", "devices")),
    "fewer_devices": Advice("set {key}, or smaller batches", ("trainer.devices",)),
    "started_devices": Advice("or leave {key} at 1: what was started counts", ("trainer.devices", "devices")),
    "num_nodes": Advice("machines are {key}", ("trainer.num_nodes",)),
    "strategy": Advice("set {key}", ("trainer.strategy",)),
    "accumulate": Advice("set {key}", ("trainer.accumulate",)),
    "loss_rows": Advice("set {key}", ("objective.loss_rows",)),
    "clip": Advice("set {key}", ("trainer.clip",)),
    "precision": Advice("set {key}", ("trainer.precision", "precision")),
    "monitor": Advice("set {key}", ("trainer.monitor", "monitor")),
    "calibrate_again": Advice(
        "run biomass calibrate on it again, or set {key}=true to take them all the same", ("other_data",)
    ),
    "measure_again": Advice("set {key}=true, or other_data=true to take them all the same", ("measure_again",)),
    "other_data": Advice("set {key}=true to go on all the same", ("other_data",)),
    "resume": Advice("write {key}=auto, or another run_name", ("resume",)),
    "resume_from": Advice("write {key}=auto, or {key}= with the path of one", ("resume",)),
    "run_name": Advice("set {key}", ("run_name",)),
}
"""What the advice of an error (:class:`biomass.errors.BiomassError`) means for the user of a script."""


def advice_where(has: Callable[[str], bool]) -> dict[str, str]:
    """The advice that a script with certain keys can give, for :func:`biomass.errors.explain`.

    Args:
        has: whether the script's configuration has a key.

    >>> advice_where({"precision"}.__contains__)
    {'precision': 'set precision'}
    """
    named = {name: next(filter(has, advice.keys), None) for name, advice in ADVICE.items()}
    return {name: ADVICE[name].text.format(key=key) for name, key in named.items() if key is not None}
