"""Why a probe or a run ended without a full measurement: closed kinds, with their numbers.

Decisions are made on these. The sentences for people are made where they are shown.
"""

from dataclasses import dataclass
from enum import StrEnum

from autotune.units import format_bytes


class Cause(StrEnum):
    """Why workers ended, or why a trial's verdict does not follow from its peak.

    When several ranks fail at once, the first of their causes in this order counts.
    """

    DEVICE_OOM = "device_oom"
    """An allocation on the device was refused: the device has no more memory."""
    HARD_LIMIT = "hard_limit"
    """A device passed our own hard limit, by its readings or by an allocation that was refused there."""
    HOST_OOM = "host_oom"
    """The host ran out of memory: its floor was reached, or the kernel killed a worker."""
    HOST_TARGET = "host_target"
    """Host memory passed its target."""
    THRASHING = "thrashing"
    """It fits only because the allocator freed its cache and tried again."""
    SIZE_LIMIT = "size_limit"
    """The size crashes and a smaller one runs: a size limit that is not memory."""
    KILLED = "killed"
    """SIGKILL without a trace of the kernel's out-of-memory killer."""
    REFUSED = "refused"
    """The workload refused its settings or data: a ChatlmError in the worker."""
    CRASHED = "crashed"
    """An exception in a worker that is neither out of memory nor the user's to fix."""
    DIED = "died"
    """A worker exited, or a signal ended it, without a message."""
    HUNG = "hung"
    """No message, or no CPU time, for too long."""


FOR_MEMORY = frozenset(
    {Cause.DEVICE_OOM, Cause.HARD_LIMIT, Cause.HOST_OOM, Cause.HOST_TARGET, Cause.THRASHING}
)
"""Causes that a smaller size may cure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A cause with its numbers. A number that the cause does not have is None."""

    cause: Cause
    detail: str = ""
    """What the worker or the system said; to show, never to decide."""
    hint: str | None = None
    """What to try; of a refusal only."""
    rank: int | None = None
    """The rank that failed first."""
    device: str | None = None
    """The name of the device."""
    held: int | None = None
    """Bytes that were held when it was stopped."""
    limit: int | None = None
    """Bytes that were allowed."""
    exit_code: int | None = None
    """Exit code of the process that ended; negative for a signal."""

    @property
    def first_line(self) -> str:
        """The first line of the detail, or the name of the cause."""
        return next(iter(self.detail.splitlines()), "") or self.cause

    def __str__(self) -> str:
        """The sentence for people, as profiles and screens show it."""
        match self.cause:
            case Cause.HARD_LIMIT if self.held is not None and self.limit is not None:
                return (
                    f"stopped at {format_bytes(self.held)} on {self.device}, past the hard limit of "
                    f"{format_bytes(self.limit)}"
                )
            case Cause.HARD_LIMIT:
                return f"stopped at the hard limit: {self.first_line}"
            case Cause.HOST_TARGET if self.held is not None and self.limit is not None:
                return f"host memory: {format_bytes(self.held)} in use, {format_bytes(self.limit)} allowed"
            case Cause.HOST_TARGET:
                return "host memory"
            case Cause.THRASHING:
                return "the allocator thrashed"
            case Cause.SIZE_LIMIT:
                return f"size limit: {self.first_line}"
            case _:
                return self.first_line
