"""What happens, as it happens: the engine emits these, and screens, logs and tests listen.

Nothing flows back. A listener that fails is dropped and logged once (see `Listeners`): a broken
terminal must not stop a run.
"""

import errno
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

from autotune.readings import DeviceBudget, DeviceReading, HostReading
from autotune.trial import Trial

log = logging.getLogger("chatlm")


Emit = Callable[[object], None]
"""Takes any event of this module or of `trainer.events`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One line that the user should read, whatever the screen."""

    type: ClassVar[str] = "notice"
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningStarted:
    """The workload is ready and the budgets are known."""

    model: str
    target: float
    ceiling: int
    devices: tuple[DeviceBudget, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeStarted:
    """A size is about to run; the answer is in doubt between `low` and `high`."""

    size: int
    low: int
    """Largest size that fitted so far; 0 when none did."""
    high: int
    """Smallest size that did not fit; ceiling + 1 when none failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingTaken:
    """Live meters, a few times a second."""

    devices: tuple[DeviceReading, ...]
    host: HostReading
    workers: int
    """Resident host memory of our workers, bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeEnded:
    """A probe's evidence, and the bracket after it."""

    trial: Trial
    low: int
    high: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningEnded:
    """The search is over, or was interrupted."""

    answer: int | None
    interrupted: bool
    seconds: float


DROPPED = "a listener failed on %s and was dropped"


class Listeners:
    """An `emit` that hands each event to several listeners.

    Those that are left are told of one whose stream fails; nobody is told of a reader that leaves, as `head` does.
    """

    def __init__(self, listeners: Iterable[Emit]) -> None:
        self.listeners = list(listeners)

    def __call__(self, event: object) -> None:
        failures = []
        for listener in list(self.listeners):
            try:
                listener(event)
            except OSError as error:
                self.listeners.remove(listener)
                if not (isinstance(error, BrokenPipeError) or error.errno == errno.EPIPE):
                    failures.append(error)
            except Exception:
                self.listeners.remove(listener)
                log.exception(DROPPED, type(event).__name__)
        for failure in failures:
            if not self.listeners:
                log.error(DROPPED, type(event).__name__, exc_info=failure)
            where = failure.filename or "the screen"
            text = f"cannot write to {where}: {failure.strerror}; going on without it"
            self(Notice(text=text))
