"""Tools, one a module: ``biomass <tool>``, which is the same as ``python -m biomass <tool>``.

Every module of this folder is a tool, unless its name starts with an underscore; no list of them is kept. It has

* a docstring: ``biomass --help`` shows its first line, ``biomass <tool> --help`` all of it;
* ``PLACE``, a number: where it comes in the order in which a lab uses the tools;
* ``main``. A tool on files takes options, ``main(arguments)`` with a :class:`Parser`, and ``--out`` (a place) or
  ``--run-name`` (a folder below ``runs/``) for what it writes. A tool that loads a model takes overrides, as the root
  scripts do: its ``main`` is decorated with ``biomass.config.script("<tool>")`` and composed from
  ``configs/<tool>.yaml``, where ``run_name`` is a key.

A tool is imported when it is called, and not before. One that takes overrides may import what it likes at its top, as
help and what is wrong on the command line come before that (:func:`biomass.config.look_ahead`). One that takes options
imports what it works with behind them, in ``main``; and this module imports nothing that takes long.
"""

import argparse
import ast
import logging
import math
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from biomass import several, stopping
from biomass.diskerrors import escaped, flushed
from biomass.errors import BiomassError, ConfigError, did_you_mean, explain, log_printably, one_line, shortened
from biomass.run_lock import letting_go

ADVICE = {
    "skip": "or give --on-bad-image skip",
    "left_over": "or give --allow-left-over",
    "nuclei": "give --nuclei, or leave it out to have nuclei found",
    "channel": "name the one with the stain of DNA with --channel",
    "store": "give another --out",
    "cache_dir": "give --set cache_dir=… with a folder that can be written",
    "metadata_file": "give --set metadata_file=…",
    "summary_file": "correct --set summary_file=…, or leave it out",
    "plates": "give --set 'plates=[…]'",
    "img_dir": "name the folder that holds one for every experiment",
    "image_dir": "give --set image_dir=…",
    "image": "give --set image=…, or --set image.<channel>=… where every channel has a file of its own",
    "channels": "give --set 'channels=[…]'",
    "axes": "give --set axes=CHW or --set axes=HWC",
    "z": "give --set z=max, focus, middle or a number",
    "time": "give --set time=0",
    "depths": "or give --set depths=scale",
    "sizes": "or give --set sizes=crop or --set sizes=pad",
    "columns": "give --set columns.<column>=…",
    "no_splits": "give --set splits=plate",
    "splits": "give --set 'splits.<split>.<column>=[…]'",
    "control": "give --set control.column=… --set 'control.negative=[…]'",
    "classes": "give --set 'classes=[…]'",
    "pattern": "give --layout, or --pattern such as '{plate}/{well}_s{site}_w{channel}.tif'",
    "plate_name": "give --plate",
    "place": "give --place <beginning of the path>=<folder>",
    "rename": "correct --channels",
    "drop_channel": "give --channels <channel>=, or --on-bad-image skip",
    "experiment": "give --experiment",
    "replace": "give --replace",
    "manifest": "give another --out",
    "correction": "name it with --correction",
}
"""What to type for each advice of an error (see :class:`biomass.errors.BiomassError`), in the tools on files."""


_LONG = 400
"""Characters of a message about options; a longer one is cut."""


class Tool(NamedTuple):
    """What is known of a tool without importing it.

    Attributes:
        place: in the order in which a lab uses the tools.
        name: as it is typed.
        summary: the first line of its docstring.
        about: its docstring.
        file: of its module.
        composed: whether it takes overrides, as the root scripts do: its ``main`` is decorated.
    """

    place: int
    name: str
    summary: str
    about: str
    file: Path
    composed: bool


def find_tools() -> list[Tool]:
    """All tools, in the order in which a lab uses them; read from their source, since importing them takes seconds."""
    tools = []
    for file in (file for folder in __path__ for file in Path(folder).glob("[!_]*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        places = [
            node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PLACE"
            if isinstance(node.value, ast.Constant) and isinstance(node.value.value, int)
        ]
        mains = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
        about = ast.get_docstring(tree, clean=False) or ""
        known = file.stem, about.partition("\n")[0], about, file, any(main.decorator_list for main in mains)
        tools.append(Tool(places[0] if places else sys.maxsize, *known))
    return sorted(tools)


class Parser(argparse.ArgumentParser):
    """The options of a tool on files. What it does not understand is one line, and the exit code 2.

    Args:
        tool: its name.
        about: the docstring of its module.
    """

    def __init__(self, tool: str, about: str) -> None:
        super().__init__(
            f"biomass {tool}", description=plain(about), formatter_class=argparse.RawDescriptionHelpFormatter
        )
        for kind, read in ((Path, _path), (int, _whole), (float, _decimal)):  # what ``type=Path`` means here
            self.register("type", kind, read)

    def add_source(self, help: str) -> None:
        """``<source>``, anything that :func:`biomass.datasets.any_source.open_source` reads, and how to read it."""
        self.add_argument("source", type=Path, help=help)
        self.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the reader")
        self.add_argument("--on-bad-image", choices=("error", "skip"), default="error", help="skip: leave it out")

    def add_shard(self) -> None:
        """``--shard``, for the jobs of an array, see :mod:`biomass.shards`."""
        self.add_argument("--shard", metavar="3/16", help="only this part of the plates; then merge puts all together")

    def add_out(self, help: str) -> None:
        """Where to write to: the last word, as in the published commands, or ``--out``."""
        self.add_argument("out", type=Path, nargs="?", help=help)
        self.add_argument("--out", type=Path, dest="out_option", metavar="OUT", help="the same, as an option")

    def parse(self, arguments: Sequence[str] | None, needs_out: bool = False) -> argparse.Namespace:
        """The values of the options, which may stand between, before and after the words."""
        args = self.parse_intermixed_args(arguments)
        if args.out is not None and args.out_option is not None:
            self.error(f"out is given twice: '{args.out}' and --out {args.out_option}")
        args.out = args.out or args.out_option
        if needs_out and args.out is None:
            self.error("the following arguments are required: out")
        return args

    def error(self, message: str) -> Any:
        unknown = re.search(r"unrecognized arguments:.*?--([^\s=]+)", message)
        known = [option.removeprefix("--") for option in self._option_string_actions]
        listed = f"{self.prog} --help lists what it takes"
        hint = did_you_mean(unknown[1], known, listed) if unknown else listed
        print(f"error: {shortened(one_line(message), _LONG)}; {hint}", file=sys.stderr)
        raise SystemExit(2)


def _path(text: str) -> Path:
    """A place as it is typed. Shells leave ``~`` in ``--out=~/x`` as it is."""
    if not text:
        raise argparse.ArgumentTypeError("'' is no path: a variable of the shell was perhaps empty")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"'{text}' begins with a user who is not known here: write ./{text}") from None
    return path if path.name not in ("", "..") else path.resolve()  # of which a name can be told


def _whole(text: str) -> int:
    if not re.fullmatch(r"[-+]?[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number: write one such as 12")
    return int(text)


def _decimal(text: str) -> float:
    if not re.fullmatch(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", text) or not math.isfinite(
        float(text)
    ):
        raise argparse.ArgumentTypeError(f"'{text}' is no number: such as 1.5")
    return float(text)


def plain(docstring: str) -> str:
    """A docstring without its marks, for a terminal.

    >>> plain("Read ``a.csv`` with :func:`biomass.screen.make_screen`::")
    'Read a.csv with biomass.screen.make_screen:'
    """
    return re.sub(r"::$", ":", re.sub(r":\w+:`~?([^`]*)`", r"\1", docstring.replace("``", "")), flags=re.MULTILINE)


@contextmanager
def run_on_files(
    stopped: str, followed: Collection[str] = (), own: Mapping[str, str] | None = None, shard: str | None = None
) -> Iterator[None]:
    """Run a tool on files: the log is printed; an error that a user can mend is one line, and the exit code 1.

    Args:
        stopped: what to say after a signal, which is one line and an exit code of :mod:`biomass.stopping`.
        followed: advice that the user follows already, see :data:`ADVICE`.
        own: what advice means in this tool, where it is something else than in others.
        shard: the part that this process makes; others may make other parts.
    """
    log_printably()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    alone = shard in (None, "merge")
    silent = alone and several.rank() > 0
    with stopping.listening(goes_on=False, silent=silent), letting_go(), _one_line_errors(followed, own or {}):
        stopping.say(stopped, "")
        if alone:
            several.check_alone("this tool")
        with stopping.raised():
            yield


@contextmanager
def _one_line_errors(followed: Collection[str], own: Mapping[str, str]) -> Iterator[None]:
    try:
        with flushed():
            yield
    except BiomassError as error:
        advice = {name: text for name, text in (ADVICE | dict(own)).items() if name not in followed}
        raise SystemExit(f"error: {explain(error, advice)}") from None
    except BrokenPipeError:  # of ``| head``
        raise SystemExit(1) from None
    except Exception as error:  # a path so long that looking whether it is there fails, a disk that is full …
        line = escaped(error)
        if line is None:
            raise
        raise SystemExit(f"error: {line}") from None


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """The values of ``--set``, nested at their points.

    Raises:
        ConfigError: one is not ``key=value``.

    >>> parse_settings(["columns.label=moa", "plates=[0012, NO]"])
    {'columns': {'label': 'moa'}, 'plates': ['0012', 'NO']}
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from biomass.notation import PlainLoader

    options, seen = OmegaConf.create(), set[str]()
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {shortened(setting)} has no value: write key=value")
        if not all(part and part.isprintable() for part in key.split(".")) or len(key) > _LONG:
            raise ConfigError(f"--set {shortened(setting)!r} names no key: write key=value, such as z=max")
        if key in seen:
            raise ConfigError(f"--set {key}=… is given twice: take one of the two out")
        seen.add(key)
        try:
            OmegaConf.update(options, key, yaml.load(value, Loader=PlainLoader), merge=True)
        except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            cause = getattr(error, "problem", None) or str(error).partition("\n")[0]
            raise ConfigError(
                f"--set {shortened(setting)} cannot be understood ({shortened(one_line(cause))}): write a word, "
                "'key=[a, b]' or 'key={a: b}'; what holds : # or brackets stands in double quotes within them"
            ) from error
    values = OmegaConf.to_container(options)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}
