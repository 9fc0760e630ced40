"""The evidence that one probe leaves: what it peaked at, how fast it was, what was decided."""

from dataclasses import dataclass

from autotune.verdict import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBudget:
    """What may be held of one device: `budget = target × total − others`, in bytes."""

    device: str
    name: str
    total: int
    others: int
    """Held by others before any worker of ours started."""
    budget: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A size that was probed. Memory is of the device with the least headroom; bytes, seconds."""

    size: int
    verdict: Verdict
    peak: int | None
    """Our own peak, others' memory subtracted; None when the probe died before it could tell."""
    seconds: float
    """Wall time of the whole probe, a worker's start included."""
    budgets: tuple[DeviceBudget, ...] = ()
    """What the devices allowed when it ran: others may have come or gone since."""
    device_peaks: tuple[int, ...] = ()
    """Our peak on each device, in the order of the budgets."""
    tightest: int = 0
    """Which of the budgets left the least headroom: `peak`, `fixed` and `growing` are that device's."""
    fixed: int | None = None
    """Resident before the forward pass."""
    growing: int | None = None
    """Peak of forward and backward, apart from the optimizer step's."""
    host_peak: int | None = None
    """Highest resident memory of all workers together."""
    samples_per_second: float | None = None
    """Over all devices, warm-up excluded, at the longest lengths of the data."""
    tokens_per_second: float | None = None
    reason: str | None = None
    """Why it was not measured in full, in a few words: `host memory`, `killed`."""
