"""A device that is only simulated: the memory of one training by size, and what a probe of it says.

What a probe says is noisy, as on a real device: the peak, and what is resident before the forward pass, both
normal and cut off at three sigma. A probe that passes the budget by 5 % of the card is stopped before its peak
is known. Sizes beyond a limit that is not memory are refused, and counted apart.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from autotune.search import Search
from autotune.verdict import Verdict

BUDGET = 12 * 2**30
CARD = BUDGET / 0.6
HARD_LIMIT = 0.05
"""A probe is stopped this share of the card above its budget, before its peak is known."""
NOISE = 0.01
FIXED_NOISE = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The memory of one training, without noise; bytes by size."""

    family: str
    ceiling: int
    fixed: int | None
    """What is resident before the forward pass; None where it is not told."""
    growing: Callable[[int], float]
    floor: float = 0.0
    """The optimizer step's peak, whatever the size."""
    tells_growing: bool = True
    limit: int | None = None
    """Larger sizes do not run, whatever their memory."""
    budget: float = BUDGET
    card: float = CARD
    judged_at: float = 1.0
    """The share of the budget that the best answer must be within."""

    def peak(self, size: int) -> float:
        if self.limit is not None and size > self.limit:
            return math.inf
        return max(self.growing(size), self.floor)

    @property
    def hard_limit(self) -> float:
        """Where a probe is stopped, before its peak is known."""
        return self.budget + HARD_LIMIT * self.card

    @property
    def optimum(self) -> int:
        """The answer that a search is compared with; 0 where nothing fits."""
        return self.largest(self.judged_at * self.budget)

    def largest(self, amount: float) -> int:
        """The largest size whose peak is within the amount; 0 where none is."""
        low, high = 0, self.ceiling + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.peak(middle) <= amount else (low, middle)
        return low


@dataclass(slots=True)
class Device:
    """A device that runs one curve, and a tally of what was asked of it."""

    curve: Curve
    random: Random
    noise: float = NOISE
    sizes: list[int] = field(default_factory=list)
    over: int = 0
    oom: int = 0
    stopped: int = 0
    """Those of `over` that passed the hard limit."""
    refused: int = 0

    def wobble(self, sigma: float) -> float:
        return 1 + min(max(self.random.gauss(0, sigma), -3 * sigma), 3 * sigma)

    def runs(self, size: int) -> bool:
        """What a peer sees: the budget is its card."""
        self.sizes.append(size)
        if not self.takes(size):
            return False
        ran = self.curve.peak(size) * self.wobble(self.noise) <= self.curve.budget
        self.oom += not ran
        self.stopped += not ran
        return ran

    def takes(self, size: int) -> bool:
        """Whether memory decides."""
        refused = self.curve.limit is not None and size > self.curve.limit
        self.refused += refused
        return not refused

    def probe(self, search: Search, size: int) -> Search:
        """What our search is told."""
        self.sizes.append(size)
        if not self.takes(size):
            return search.tell(size, Verdict.OOM)
        wobble = self.wobble(self.noise)
        fixed = self.curve.fixed
        if fixed is not None:
            fixed = int(fixed * self.wobble(min(FIXED_NOISE, self.noise)))
        peak = self.curve.peak(size) * wobble
        self.oom += peak > self.curve.card
        self.stopped += peak > self.curve.hard_limit
        self.over += peak > self.curve.budget
        if peak > self.curve.hard_limit:
            return search.tell(size, Verdict.OVER, None, fixed)
        growing = int(self.curve.growing(size) * wobble) if self.curve.tells_growing else None
        verdict = Verdict.FITS if peak <= self.curve.budget else Verdict.OVER
        return search.tell(size, verdict, int(peak), fixed, growing)
