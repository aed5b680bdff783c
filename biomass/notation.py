"""How values are written: in YAML files, and as ``key=value`` on the command line.

A plate may be called ``0012``, ``2021_08_12``, ``NO`` or ``1E05``. YAML 1.1 takes these for 10, 20210812, false and
100000, and Hydra's grammar some of them; another plate would be trained on in silence. Here only plain decimals are
numbers, and everything else is text as it was written.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from biomass.bounds import BoundedLoader
from biomass.errors import ConfigError, did_you_mean, one_line, shortened, shown
from biomass.keys import KEYS, holds_names

_WHOLE = r"-?(?:0|[1-9][0-9]*)"
_FLOAT = rf"{_WHOLE}\.[0-9]*(?:[eE][-+]?[0-9]+)?|-?\.[0-9]+(?:[eE][-+]?[0-9]+)?|{_WHOLE}(?:[eE][-+][0-9]+|e[1-9][0-9]*)"
_WORDS_OF_YAML = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "merge": (r"<<", "<"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (_WHOLE, "-0123456789"),
    "float": (rf"{_FLOAT}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+.0123456789"),
}
"""What is not text in a YAML file, and the characters it begins with."""


class PlainLoader(BoundedLoader):
    """OmegaConf's YAML, where only ``true``, ``12``, ``1.5``, ``1e-3`` and their like are not text.

    >>> yaml.load("[0012, 2021_08_12, NO, 0x1F, 1:30, 1E05, 12, 1.0e-3, 1e-3, true, null]", Loader=PlainLoader)
    ['0012', '2021_08_12', 'NO', '0x1F', '1:30', '1E05', 12, 0.001, 0.001, True, None]
    """

    most = 20_000


PlainLoader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _WORDS_OF_YAML.items():
    PlainLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), [*_first, *([""] if _tag == "null" else [])]
    )


class FileConfigSource(file_config_source.FileConfigSource):
    """Hydra's source of configuration files, read with :class:`PlainLoader`.

    It bears the name of Hydra's own class, so that Hydra, which registers that when it looks for plugins, keeps this.
    """

    def load_config(self, config_path: str) -> ConfigResult:
        """One file of a folder of configurations."""
        file = Path(self.path) / self._normalize_file_name(config_path)
        try:
            plain = yaml.load(file.read_text(encoding="utf-8"), Loader=PlainLoader) if file.is_file() else {}
        except UnicodeDecodeError as error:
            raise ConfigError(f"'{file}' is not text in UTF-8; save it as that") from error
        except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError, TypeError, RecursionError) as error:
            raise ConfigError(_explain_file(file, error)) from error
        plain = {} if plain is None else plain
        if not isinstance(plain, dict):
            raise ConfigError(f"'{file}' holds {shown(plain, 40)}, not keys with their values; write a line key: value")
        try:
            result = super().load_config(config_path)  # reads the header, too, and complains where there is no file
            result.config = OmegaConf.create(plain)
        except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
            raise ConfigError(_explain_file(file, error)) from error
        return result


def _explain_file(file: Path, error: Exception) -> str:
    """Why a file is not YAML, at which line, and what to write instead."""
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1} of '{file}'" if mark is not None else f"'{file}'"
    cause = getattr(error, "problem", None) or one_line(error)
    tab = mark is not None and "'\\t'" in str(cause)
    if "duplicate key" in str(cause):
        return (
            f"{where} cannot be read: {one_line(str(cause))}; a key stands once in its section: take one of the two out"
        )
    remedies = {
        "special characters": "take that character out",
        "holds itself": "take the anchor (&) or the alias (*) out",
        "anchors stand for": "write the values once, without anchors (&)",
        "the tag": "take the tag, which begins with !, out",
    }
    remedy = next((remedy for part, remedy in remedies.items() if part in str(cause)), None)
    if remedy is None and mark is None and isinstance(error, yaml.YAMLError):  # see BoundedLoader
        remedy = "take it apart"
    if remedy is None:
        remedy = (
            "put blanks in place of the tab"
            if tab
            else "write a key, a colon, a blank, a value; each level two blanks in"
        )
    return f"{where} cannot be read: {one_line(str(cause))}; {remedy}"


SourcesRegistry.instance().types[FileConfigSource.scheme()] = FileConfigSource


_OVERRIDE = re.compile(r"(?P<sign>\+\+?|~)?(?P<key>[A-Za-z_$][\w./@:$-]*)(?:=(?P<value>.*))?", re.DOTALL)
_CHOICES = re.compile(r"\+{0,2}(?P<key>[\w/@]+)=\[.*\]", re.DOTALL)
"""Several files of a choice; Hydra fails where not all of them are text."""
_NO_NAME = re.compile(r"\+{0,2}(?P<key>[\w/@]+)=(?:null|true|false|[-+.\w]*\d[-+.\w]*)", re.IGNORECASE)
"""What is no name of a file of a choice."""

_IN_BRACES, _ELSEWHERE = (
    re.compile(rf"""\$\{{[^}}]*\}}|"[^"]*"|'[^']*'|[^{signs}"']+|.""", re.DOTALL) for signs in (r",:\[\]{}", r",\[\]{}")
)
"""What a value is made of: a reference, a quoted or bare text, or one sign. In braces a colon is a sign, too."""

_RETYPED = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:e[-+]?[0-9_]+)?|[-+]?inf|[-+]?nan|true|false", re.IGNORECASE
)
"""What Hydra's grammar may take for a number, or for true or false."""


_LONG = 120
"""Characters of a setting; of a longer one messages show the beginning."""


class Arguments(NamedTuple):
    """A command line.

    Attributes:
        options: those of Hydra, ``-m`` and the like.
        overrides: ``key=value``, ``+key=value``, ``~key``.
    """

    options: list[str]
    overrides: list[str]

    @classmethod
    def of(cls, arguments: Sequence[str]) -> "Arguments":
        """Take a command line apart.

        Raises:
            ConfigError: an unknown option, or something that is not a setting, with what to write instead.

        >>> Arguments.of(["seed=0,1", "-m", "~dataloaders.max_groups"])
        Arguments(options=['-m'], overrides=['seed=0,1', '~dataloaders.max_groups'])
        """
        dashed = next(filter(None, (re.fullmatch(r"--?([\w.]+=.*)", a, re.DOTALL) for a in arguments)), None)
        if dashed:
            raise ConfigError(f"'{dashed[0]}': keys have no dashes; write {shlex.quote(dashed[1])}")
        parser = get_args_parser()
        parser.error = _refuse  # type: ignore[method-assign, assignment]
        parsed, rest = parser.parse_known_args(list(arguments))
        unknown = next((one for one in rest if one.startswith("-")), None)
        if unknown:
            raise ConfigError(f"unknown option '{unknown}'; --hydra-help lists them")
        if parsed.experimental_rerun is not None:  # a pickle, which may hold code
            raise ConfigError("--experimental-rerun is not taken; type the command of that run again")
        if parsed.package is not None and parsed.cfg is None:
            raise ConfigError(
                f"--package {parsed.package} goes with --cfg job, which prints a part of the configuration; add it"
            )
        overrides = [*parsed.overrides, *rest]  # the parser does not take those behind an option
        for position in range(len(overrides)):
            _check_form(overrides, position)
        return cls([one for one in arguments if one not in overrides], overrides)

    def for_hydra(self) -> list[str]:
        """The same for Hydra, in which names keep their spelling: quoted where Hydra would make them numbers.

        >>> Arguments([], ["run_name=2021_08_12", "model_path=7,1E05", "learning_rate=1E-3"]).for_hydra()
        ['run_name="2021_08_12"', 'model_path=7,"1E05"', 'learning_rate=1E-3']
        """
        return [*self.options, *map(_with_quotes, self.overrides)]

    def explain(self, error: Exception) -> str:
        """What is wrong with these arguments or a file, on one line, and what to write instead.

        Args:
            error: of Hydra, omegaconf or the YAML reader.
        """
        message = self._explain(error)
        for long in filter(lambda one: len(one) > _LONG, self.overrides):
            message = message.replace(long, shortened(long, _LONG))
        return shortened(message, 10 * _LONG)

    def _explain(self, error: Exception) -> str:
        text = str(error)
        if isinstance(error, OverrideParseException):
            given = (override for override in self.overrides if _with_quotes(override) == error.override)
            return _explain_value(next(given, error.override))
        missing = re.search(r"Could not find '([^'\n]+)'", text)
        if isinstance(error, MissingConfigException) and missing:
            return self._no_choice(missing[1], re.findall(r"^\t(?!provider=)(.+)$", text, re.MULTILINE))
        if ambiguous := re.search(r"Ambiguous value for argument '([^=]*)=(.*)'\n", text):
            key, value = ambiguous.groups()
            either = f"{_quoted(key, value)}, or {shlex.quote(f'{key}=[{value}]')} for a list"
            if re.fullmatch(r"\d+,\d+", value) and key in KEYS and KEYS[key].types == int | float:
                either = f"{key}={value.replace(',', '.')}"
            return f"'{key}={value}' holds a comma; write {either}, or sweep with -m"
        if folder := re.search(r"Additional config directory '(.*)' not found", text, re.DOTALL):
            return f"there is no folder '{folder[1]}'; correct --config-dir, or leave it out"
        if sweep := re.search(r"Sweep parameters '(.*)' requires --multirun", text):
            return f"'{sweep[1]}' is a sweep; add -m to the command"
        if chosen := re.search(
            r"Could not override '(.+)'\. No match in the defaults list.*use (\S+)", text, re.DOTALL
        ):
            return f"nothing is chosen for '{chosen[1]}' yet; write {chosen[2]}"
        if unknown := re.search(r"Could not (?:override|delete from config)[^']*'([^']*)'", text):
            return _unknown(unknown[1])
        choices = _NO_NAME if "Config group override must be" in text else _CHOICES
        no_choice = isinstance(error, TypeError) or choices is _NO_NAME
        lists = filter(None, map(choices.fullmatch, self.overrides)) if no_choice else ()
        chosen = next((one for one in lists if one["key"] not in KEYS or KEYS[one["key"]].types is dict), None)
        if chosen is not None:
            return (
                f"{shortened(chosen[0])!r} chooses files of configs/{chosen['key'].partition('@')[0]} by "
                "their names; write one name, without brackets, or leave it out"
            )
        if twice := re.search(r"(\S+) appears more than once in the final defaults list", text):
            return f"the defaults choose '{twice[1]}' twice; take one of the two out"
        return self._of_hydra(text, error)

    def _no_choice(self, path: str, known: Sequence[str]) -> str:
        """There is no file of a choice: ``path`` is the group with what was chosen of it."""
        given = (one.lstrip("+").partition("=")[::2] for one in self.overrides)
        group, value = next((pair for pair in given if "/".join(pair) == path), path.rpartition("/")[::2])
        if not group:
            return f"there is no configuration '{value}'; leave out --config-name, or name a file of --config-dir"
        listed = did_you_mean(value, known, f"choose one of the files in configs/{group}" if len(known) > 20 else "")
        return f"there is no {group}={value}; {listed or 'leave it out'}"

    def _of_hydra(self, text: str, error: Exception) -> str:
        """What else Hydra or the reader of a file says: with the setting that it is about, and where to look."""
        inner = str(error.__cause__ or "") if isinstance(error.__cause__, OmegaConfBaseException | ValueError) else ""
        parts = [re.split(r"\n *(?:full_key:|Config search path)", part)[0] for part in (text, inner) if part]
        cause = ": ".join(dict.fromkeys(map(one_line, parts))) or type(error).__name__
        if isinstance(error, yaml.YAMLError):
            return f"a YAML file cannot be read ({cause}); mend that line, in which blanks, not tabs, make the steps"
        if isinstance(error, RecursionError):
            cause = "a file chooses itself, or brackets stand too deep in each other"
        keys = {one: one.lstrip("+~").partition("=")[0] for one in self.overrides}
        about = next((one for one, key in keys.items() if key and key in cause), None)
        if about is None and len(keys) == 1:
            about = self.overrides[0]
        if about is None:
            about = next((one for one, key in keys.items() if key.startswith("hydra")), None)
        look = f"--cfg {'hydra' if about and keys[about].startswith('hydra') else 'job'} shows what is there"
        if about is None:
            return f"{cause}; {look}"
        cause = (
            re.sub(r"^Error merging override .*?: (?=[^:]*$)", "", cause) if cause.startswith("Error merg") else cause
        )
        return f"{shortened(about)!r} cannot be taken ({cause}); correct it, or leave it out; {look}"


def _unknown(key: str) -> str:
    listed = "the option --cfg job lists every key"
    if key in KEYS:
        return f"this script has no key '{key}', which others have; {listed}"
    if re.match(r"dataloaders\.source\.|transforms\.", key):
        return f"the file has no key '{key}'; {listed}, and +{key}=… adds an argument to a section with a _target_"
    near = [one for one in KEYS if not key.startswith(f"{one}.")]
    return f"unknown key '{key}'; {did_you_mean(key, near, listed)}"


def _refuse(message: str) -> None:
    raise ConfigError(f"{message}; --hydra-help explains the options")


def _check_form(overrides: Sequence[str], position: int) -> None:
    """Raise ConfigError where an argument is not a setting: mostly because a shell took a blank for its end."""
    argument, before, behind = overrides[position], *_neighbours(overrides, position)
    override, previous = _OVERRIDE.fullmatch(argument), _OVERRIDE.fullmatch(before)
    if override is not None and override["sign"] == "~":
        if override["value"] is not None:
            raise ConfigError(f"'{argument}': to delete a key, write '~{override['key']}' without a value")
        return
    if override is not None and override["value"] is not None:
        return
    if argument.startswith("=") or behind.startswith("=") or (previous is not None and previous["value"] == ""):
        raise ConfigError(f"'{argument}': write key=value without blanks around the =")
    if previous is None or previous["value"] is None:
        raise ConfigError(f"'{argument}' is not a setting; write key=value")
    joined = (" ".join(overrides[position - 1 : end]) for end in range(position + 1, len(overrides) + 1))
    whole = next(filter(_can_be_read, joined), None)
    remedy = shlex.quote(whole) if whole else _quoted(previous["key"], f"{previous['value']} {argument}")
    raise ConfigError(f"'{argument}' is not a setting; a value that holds a blank stands in quotes: {remedy}")


def _neighbours(words: Sequence[str], position: int) -> tuple[str, str]:
    return ["", *words][position], [*words, ""][position + 1]


def _explain_value(override: str) -> str:
    match = _OVERRIDE.fullmatch(override)
    if match is None or not match["value"]:
        return f"'{override}' is not a setting; write key=value"
    key, value = f"{match['sign'] or ''}{match['key']}", match["value"]
    if ":" in key:
        place = f"{key.partition('@')[0]}@{key.rpartition(':')[2]}"
        return f"'{override}': a choice stands in one place; write {place}={value}"
    control = re.search(r"[\x00-\x1f\x7f]", value)
    if control:
        return f"{override!r}: a value holds no {control[0]!r}, which cannot be printed; take it out"
    if "${" in value:
        reference = re.search(r"\$\{[^{}]*\}", value)
        if reference is None and value.count("{") > value.count("}"):
            return f"'{override}': close the reference with }}, or write '{key}=\\${{…' if none is meant"
        return f"'{override}': a reference is ${{key}}, such as ${{seed}}; write '{key}=\\${{…' if none is meant"
    if value.startswith("~"):
        return f"'{override}': write $HOME for ~: {key}=$HOME{value[1:]}"
    is_text = match["key"] in KEYS and KEYS[match["key"]].types is str
    if value[0] in "[{" and not is_text:
        missing = _missing_brackets(value)
        if not missing:
            return f"'{override}': put the names in it in double quotes, and the whole in single quotes"
        remedy = f": {shlex.quote(override + missing)}" if _can_be_read(override + missing) else ""
        return f"'{override}': brackets or quotes do not match; close them, and put the whole in single quotes{remedy}"
    sign = next((char for char in value if not re.match(r"[\w/\\.$%*@?|+ :-]", char, re.ASCII)), value)
    return f"'{override}': a value that holds {sign} stands in quotes: {_quoted(key, value)}"


def _with_quotes(override: str) -> str:
    """A setting whose names Hydra takes for names, whatever they look like."""
    match = _OVERRIDE.fullmatch(override)
    if match is None or not match["value"] or not holds_names(match["key"]):
        return override

    written, open_, rest = override[: match.start("value")], "", match["value"]
    while rest:
        piece = (_IN_BRACES if open_.endswith("{") else _ELSEWHERE).match(rest)
        assert piece is not None
        text = piece[0]
        if text in "[{":
            open_ += text
        elif text in "]}":
            open_ = open_[:-1]
        elif _RETYPED.fullmatch(name := text.strip()) and not re.fullmatch(_WHOLE, name):
            text = text.replace(name, f'"{name}"')
        written, rest = written + text, rest[piece.end() :]
    return written


def _quoted(key: str, value: str) -> str:
    """A setting as a shell takes it, whose value Hydra reads as one piece of text."""
    text = (value.strip(value[0]) if value[0] in "'\"" else value).replace('"', '\\"')
    return shlex.quote(f'{key}="{text}"')


def _missing_brackets(value: str) -> str:
    """The closing brackets that a value lacks, or the last one that closes nothing.

    >>> _missing_brackets("{test: {plate: [1]}")
    '}'
    """
    pairs, missing = {"[": "]", "{": "}"}, ""
    for char in re.sub(r"\"[^\"]*\"|'[^']*'", "", value):
        if char in pairs:
            missing = pairs[char] + missing
        elif char == missing[:1]:
            missing = missing[1:]
        elif char in "]}":
            return char
    return missing


def _can_be_read(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True
