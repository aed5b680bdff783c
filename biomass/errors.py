"""The one family of errors that a user can cause.

Every message is a single line that carries the offending value and its remedy; scripts and commands print it without a
traceback and exit with a code that is not 0. Anything else that escapes is a defect of ours and keeps its traceback.

What a user has to *type* to follow a remedy depends on where he is: a key of a YAML for a script, an option for a
command, an argument in Python. A reader or a sampler does not know. Its error therefore names an *advice*, and the edge
looks up what that means there, see :func:`explain`.
"""

import json
import logging
import re
import sys
import unicodedata
import warnings
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any


class BiomassError(Exception):
    """Base of all errors that a user can cause and mend.

    Args:
        message: one line: the value, the cause, the remedy in words that hold everywhere.
        advice: name of an entry in the tables of advice (see :func:`explain`): what could be set differently.
    """

    def __init__(self, message: str, advice: str | None = None) -> None:
        super().__init__(message)
        self.advice = advice


class ConfigError(BiomassError):
    """A setting does not fit: a key, an option, an argument, or a place to write to."""


class DataError(BiomassError):
    """A table, an image or a download is not what it must be."""


class BadImageError(DataError):
    """One image cannot be read, or does not have the shape of the others.

    Attributes:
        row: the row of the screen that the image belongs to.
        kind: what is wrong, one of :data:`BAD_IMAGES`.
    """

    def __init__(self, message: str, row: int, advice: str | None = "skip", kind: str = "damaged") -> None:
        super().__init__(message, advice)
        self.row, self.kind = row, kind

    def __reduce__(self) -> tuple[type["BadImageError"], tuple[str, int, str | None, str]]:
        return type(self), (str(self), self.row, self.advice, self.kind)  # crosses from a worker process with its row


BAD_IMAGES = {
    "missing": "copy or download it again",
    "damaged": "copy or download it again",
    "still being written": "it has just changed: wait until it is complete",
    "not a file": "name the image file itself",
    "no access": "make it readable, or copy it to where it is",
    "wrong type": "save it as numbers, uint8 or uint16",
    "wrong shape": "save it like the others",
    "too large": "save it in parts, an image each; if it is not that large, copy or download it again",
    "packed as bad": "mend it, and pack the images again",
}
"""What may be wrong with an image, and the remedy of each kind where its message has no better one."""


class RefusedError(ValueError):
    """Why a file is not read: said between readers, who make a :class:`DataError` of it that names the file.

    Args:
        why: what is wrong with it; of :mod:`biomass.guarded`, the end of a sentence that begins with its name.
        kind: in one word or two, see :data:`BAD_IMAGES`.
        remedy: what to do, where it is not what is to be done with all of this kind.
    """

    def __init__(self, why: str, kind: str = "damaged", remedy: str | None = None) -> None:
        super().__init__(why)
        self.kind, self.remedy = kind, remedy


class NoCellsError(DataError):
    """There is not one cell: of a whole screen that is an error, of a part of it not."""


class CheckpointError(BiomassError):
    """A checkpoint is missing, damaged, or belongs to another architecture."""


class TrainingError(BiomassError):
    """Training cannot go on, for example because the loss is not a number."""


class ToldError(BiomassError):
    """Another process of the run has said why it ends."""


class CannotJudgeError(BiomassError):
    """A metric or a correction cannot be told of these profiles: what it would need. Others still can."""


def one_line(error: BaseException | str) -> str:
    """The message of any error, or its type where it has none, on a single line that a terminal can show.

    >>> one_line(ValueError("first\\n  second"))
    'first; second'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable("; ".join(lines)) or type(error).__name__


def printable(text: object, keep: str = "") -> str:
    r"""A text as a terminal, a log or a page may show it: what steers these, or cannot be seen, as Python writes it.

    Names of files, plates and columns, and messages of libraries, come from others. An escape sequence in one would
    colour or clear a terminal, a carriage return write over the line, a mark of direction (U+202E) turn names around;
    half of a surrogate pair, as the name of a file that is not UTF-8 has, cannot be printed at all.

    Args:
        text: anything.
        keep: signs that may stay all the same, such as line breaks in a table.

    >>> print(printable("P1\x1b[2J"), printable("a\r\u202eb"), printable("µM, 9 °C, 細胞"), printable("a\nb", "\n"))
    P1\x1b[2J a\r\u202eb µM, 9 °C, 細胞 a
    b
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c in keep or _is_seen(c) else c.encode("unicode_escape").decode() for c in text)


def say(text: object) -> None:
    r"""Print a text of one or more lines, which may hold names that come from data: they are made :func:`printable`.

    >>> say("plate P1\x1b[2J: 3 wells")
    plate P1\x1b[2J: 3 wells
    """
    encoding = sys.stdout.encoding or "utf-8"
    print(printable(text, "\n").encode(encoding, "backslashreplace").decode(encoding))


def _is_seen(sign: str) -> bool:
    return sign.isprintable() or unicodedata.category(sign) == "Zs"  # blanks other than the space


class _Record(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802
        """The message, in which no name can begin a line that looks like another message."""
        return printable(super().getMessage(), "\n\t").replace("\n", "\n    ")


def log_printably() -> None:
    """From here on all messages of logs, whoever reads or writes them, and all warnings are :func:`printable`."""
    logging.setLogRecordFactory(_Record)
    warnings.formatwarning = _format_warning


_formatted = warnings.formatwarning


def _format_warning(*about: Any, **more: Any) -> str:
    return printable(_formatted(*about, **more), "\n\t")


_NO_MEMORY = re.compile(
    r"failed to map segment|[Cc]annot allocate memory|can't allocate memory|bad_alloc|Unable to allocate"
)
_NO_MEMORY_OF_GPU = re.compile(r"CUDA out of memory|CUDA error: out of memory|CU(?:DNN|BLAS)_STATUS_ALLOC_FAILED")


def too_little_memory(error: BaseException) -> str | None:
    """The line for an error that says that the memory of this machine, or of its GPU, does not suffice; else None.

    >>> too_little_memory(ImportError("libtorch.so: failed to map segment from shared object"))[:26]
    'there is too little memory'
    >>> too_little_memory(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."))[:37]
    'there is too little memory on the GPU'
    >>> too_little_memory(ImportError("No module named 'torch'"))
    """
    why = shortened(one_line(error))
    if _NO_MEMORY_OF_GPU.search(str(error)):
        return f"there is too little memory on the GPU ({why}): take smaller batches, or a GPU that nobody else uses"
    if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
        return None
    return f"there is too little memory ({why}): take fewer rows, batches or workers, or allow more (ulimit -v)"


def explain(error: BiomassError, advice: Mapping[str, str]) -> str:
    """The message of an error for the user of one script or command.

    Args:
        error: of the family.
        advice: what each advice means there; an error whose advice is not in it stays as it is.

    >>> explain(DataError("'a.png' is damaged", advice="skip"), {"skip": "or set dataloaders.on_bad_image=skip"})
    "'a.png' is damaged; or set dataloaders.on_bad_image=skip"
    """
    remedy = advice.get(error.advice) if error.advice is not None else None
    message = one_line(error)
    if remedy is None:
        return message
    return f"{message} ({remedy})" if message.endswith("?") else f"{message}; {remedy}"


def did_you_mean(name: object, known: Iterable[object], otherwise: str = "") -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them where none is near.

    Args:
        name: what was given.
        known: what there is.
        otherwise: what to say where none is near; left out, what there is.

    >>> did_you_mean("plat", ["plate", "well"])
    "did you mean 'plate'?"
    >>> did_you_mean("x", ["plate", "well"])
    'choose plate or well'
    """
    names = [str(one) for one in known]
    near = get_close_matches(str(name), names, 1)
    if near:
        return f"did you mean '{near[0]}'?"
    if otherwise:
        return otherwise
    return f"choose {' or '.join([', '.join(names[:-1]), names[-1]] if len(names) > 1 else names)}" if names else ""


def shown(value: object, most: int = 80) -> str:
    """A value as it is shown in a message: as JSON, and of a long one its beginning.

    >>> shown(["a", None]), shown("abcdefgh", 4)
    ('["a", null]', '"abc… (10 characters)')
    """
    return shortened(json.dumps(value, ensure_ascii=False, default=str), most)


def shortened(text: str, most: int = 80) -> str:
    """A text, or the beginning of a long one.

    >>> shortened("abcdefgh", 4)
    'abcd… (8 characters)'
    """
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"
