"""Every error that a user can fix: one kind of `ChatlmError` for each source of errors.

An error has two fields: what happened, with the numbers, and a hint: what to try. The command line joins
them, prints them without a traceback and exits 1. Any other exception is a bug and keeps its traceback.
"""

from autotune.terminal import escaped

LONGEST_VALUE = 120
"""Characters of a value from a file that a message quotes."""
LONGEST_NAME = 4096
"""Characters of a name that a message quotes; no path is longer."""


class ChatlmError(Exception):
    """What happened, and a hint about what to try; `str` joins the two."""

    def __init__(self, what: str, hint: str | None = None) -> None:
        super().__init__(what, hint)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return escaped(self.what if self.hint is None else f"{self.what}; {self.hint}")


class UsageError(ChatlmError):
    """An invalid setting, or settings that contradict each other (exit 2 is typer's own)."""


class PlanError(ChatlmError):
    """An effective batch that cannot be cut as asked."""


class ProfileError(ChatlmError):
    """A profile that is unknown, malformed, or does not suit the run."""


class DataError(ChatlmError):
    """A training file that cannot be read as prompts and responses."""


class ModelError(ChatlmError):
    """A model that cannot be loaded."""


class DeviceError(ChatlmError):
    """A device or driver that is missing or does not answer."""


class WorkerError(ChatlmError):
    """A worker process that crashed, hung or never started."""


class OutOfMemory(ChatlmError):
    """Training did not fit into the device or the host."""


class NothingFits(ChatlmError):
    """Not even one sequence per device holds the target."""


class DivergedError(ChatlmError):
    """A loss, a gradient or a weight that is not finite."""


class OutputError(ChatlmError):
    """A folder that cannot be written, or that holds something else."""


def first_line(error: BaseException) -> str:
    """The first line of a foreign error's text, or the name of its type."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def shown(value: object) -> str:
    """The value as Python writes it, on one line; the middle of a long one is left out."""
    return shortened(repr(value))


def named(text: object) -> str:
    """A name or path as it is, or as `shown` if it has a line break or a control character."""
    name = str(text)
    return name if name.isprintable() and len(name) <= LONGEST_NAME else shown(name)


def shortened(text: str) -> str:
    """The text, or its beginning and its end where it is long."""
    return text if len(text) <= LONGEST_VALUE else f"{text[:80]} … {text[-20:]}"
