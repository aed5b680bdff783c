"""The one family of errors that a user can cause.

Every message is a single line that carries the offending value and the remedy; the scripts print it without a
traceback and exit with a code that is not 0. Anything else that escapes is a defect of ours and keeps its traceback.
"""


class BiomassError(Exception):
    """Base of all errors that a user can cause and mend."""


class ConfigError(BiomassError):
    """A key or a value of a configuration does not fit."""


class DataError(BiomassError):
    """A table, an image or a download is not what it must be."""


class BadImageError(DataError):
    """One image cannot be read, or does not have the shape of the others.

    Attributes:
        row: the row of the screen that the image belongs to.
    """

    def __init__(self, message: str, row: int) -> None:
        super().__init__(message)
        self.row = row

    def __reduce__(self) -> tuple[type["BadImageError"], tuple[str, int]]:
        return type(self), (str(self), self.row)  # crosses from a loader's worker process with its row


class CheckpointError(BiomassError):
    """A checkpoint is missing, damaged, or belongs to another architecture."""


class TrainingError(BiomassError):
    """Training cannot go on, for example because the loss is not a number."""


def one_line(error: BaseException | str) -> str:
    """The message of any error, or its type where it has none, on a single line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines) or type(error).__name__
