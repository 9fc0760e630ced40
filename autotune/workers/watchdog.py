"""Tells workers that compute without a message from workers that hang; the caller decides what follows."""

import math
import time
from collections.abc import Callable

from autotune.cause import Cause, Failure

MIN_CPU_SHARE = 0.05
"""Share of one core; workers below it are idle. Ranks that wait in a gloo collective use less."""
CPU_INTERVAL = 1.0
"""Seconds between two readings of the CPU time."""
MIN_SILENCE = 600.0
"""Seconds without a message that are normal in training: an evaluation or a checkpoint takes them."""
MAX_SLOWDOWN = 20
"""A limit in multiples of the expected time."""


def silence_limit(expected: float, *, least: float) -> float:
    """Seconds without a message after which work that should take `expected` seconds counts as hung."""
    return max(least, MAX_SLOWDOWN * expected)


class Watchdog:
    """Limits the seconds without a message, and the seconds without a message or CPU time."""

    def __init__(
        self,
        *,
        longest: float = math.inf,
        idle: float = math.inf,
        cpu_seconds: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.longest = longest
        self.slowest_step = 0.0
        self._idle = idle
        self._cpu_seconds = cpu_seconds
        self._clock = clock
        self._heard = self._worked = self._read_at = clock()
        self._spent = cpu_seconds()

    def step(self, seconds: float) -> None:
        """Sets the limit from the slowest training step so far, this one included."""
        self.slowest_step = max(self.slowest_step, seconds)
        self.longest = silence_limit(self.slowest_step, least=MIN_SILENCE)

    def check(self, heard: bool) -> Failure | None:
        """The failure if a limit is exceeded, else None; `heard` tells whether a message arrived since."""
        now = self._clock()
        if heard:
            self._heard = self._worked = now
        if now - self._heard > self.longest:
            return Failure(cause=Cause.HUNG, detail=f"was silent for {self.longest:.0f} s")
        if now - self._read_at >= CPU_INTERVAL:
            spent = self._cpu_seconds()
            if spent - self._spent > MIN_CPU_SHARE * (now - self._read_at):
                self._worked = now
            self._spent, self._read_at = spent, now
        if now - self._worked > self._idle:
            return Failure(cause=Cause.HUNG, detail=f"did nothing for {self._idle:.0f} s")
        return None
