"""How busy the machine was with other work while a benchmark ran: what speed figures must be read with.

All that the machine computed since a moment, less what this process and those below it did. Time that a
hypervisor took away counts as others'; so does what a process of ours did whose parent died before it.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

BUSY = 0.1
"""Share of the machine that others took, above which a figure of speed is marked."""
TICKS = os.sysconf("SC_CLK_TCK")
IDLE = (3, 4)
"""Places of idle and iowait in the first line of /proc/stat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What had been computed by then, in seconds of processors."""

    clock: float
    """Monotonic seconds."""
    all: float
    """What all processors could have done since the machine started."""
    used: float
    own: float
    """By this process, its children that have ended, and those that run."""

    @classmethod
    def now(cls) -> "Moment":
        every, used = processors(Path("/proc/stat").read_text())
        return cls(clock=time.monotonic(), all=every, used=used, own=own_seconds())


def processors(text: str) -> tuple[float, float]:
    """What /proc/stat says of all processors: the seconds that they had, and those that were used.

    The fields after `steal` are of guests, and counted in the others already.
    """
    ticks = [int(field) for field in text.splitlines()[0].split()[1:9]]
    idle = sum(ticks[place] for place in IDLE)
    return sum(ticks) / TICKS, (sum(ticks) - idle) / TICKS


def own_seconds() -> float:
    """Processor seconds of this process and of all below it."""
    found = sum(os.times()[:4])
    for child in psutil.Process().children(recursive=True):
        try:
            found += sum(child.cpu_times()[:4])
        except psutil.NoSuchProcess:  # its parent has counted it by now, or will
            continue
    return found


def others_share(before: Moment, after: Moment) -> float:
    """The share of the machine that other processes took between the two moments."""
    others = (after.used - before.used) - (after.own - before.own)
    return max(0.0, others / max(after.all - before.all, 1 / TICKS))
