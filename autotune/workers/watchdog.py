"""Tells workers that compute without a message from workers that hang; the caller decides what follows."""

import math
import time
from collections.abc import Callable

MIN_CPU_SHARE = 0.05
"""Share of one core; workers below it are idle. Ranks that wait in a gloo collective use less."""
CPU_INTERVAL = 1.0
"""Seconds between two readings of the CPU time."""
MIN_SILENCE = 600.0
"""Seconds without a message that are normal in training: an evaluation or a checkpoint takes them."""
MAX_SLOWDOWN = 20
"""In training, the limit in multiples of the slowest step."""


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
        self.longest = max(MIN_SILENCE, MAX_SLOWDOWN * self.slowest_step)

    def check(self, heard: bool) -> str | None:
        """The limit that is exceeded, in words, or None; `heard` tells whether a message arrived since."""
        now = self._clock()
        if heard:
            self._heard = self._worked = now
        if now - self._heard > self.longest:
            return f"was silent for {self.longest:.0f} s"
        if now - self._read_at >= CPU_INTERVAL:
            spent = self._cpu_seconds()
            if spent - self._spent > MIN_CPU_SHARE * (now - self._read_at):
                self._worked = now
            self._spent, self._read_at = spent, now
        return f"did nothing for {self._idle:.0f} s" if now - self._worked > self._idle else None
