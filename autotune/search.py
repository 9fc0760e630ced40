"""Which size to probe next: an immutable ask/tell over integers, and nothing else.

It knows no device, clock or process. Two things are kept apart. The *bracket* is what probes have
proven: the largest size that fits and the smallest that does not; it shrinks with every answer, so
the search ends. The *fit* is a guess at the peak's curve; it only chooses where in the bracket to
ask, so the search ends soon, and a wrong fit costs probes but never a wrong answer.

The curve: the forward and backward peak is close to `fixed + k · size`; the optimizer step sets a
floor under it that does not grow. Hence the fit reads `growing`, not `peak`, where it is known.
"""

from dataclasses import dataclass, field, replace

from autotune.verdict import Verdict

NOISE = 0.01
"""Relative spread of a peak between two runs of one size that the guard allows for."""
FINE = 64
"""The bracket is closed when it is narrower than 1/64 of the answer: 1.6 %."""
LEAP = 4
"""How far beyond the largest proven size a guess may go: so many times where the curve's slope is
unknown, and that squared where it is measured (a convex curve would overshoot a longer leap)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One answer; bytes."""

    size: int
    verdict: Verdict
    peak: int | None = None
    fixed: int | None = None
    growing: int | None = None

    @property
    def height(self) -> int | None:
        """The part of the peak that grows with size."""
        return self.peak if self.growing is None else self.growing


@dataclass(frozen=True, slots=True)
class Search:
    """Finds the largest size in 1..ceiling whose peak is within the budget (bytes).

    `guess` is a size worth trying first, from an earlier tuning. Without one the first probe is
    at size 1: the safest, and with `fixed` it already gives a slope.
    """

    ceiling: int
    budget: int
    guess: int | None = None
    told: tuple[Told, ...] = field(default=())

    def __post_init__(self) -> None:
        assert self.ceiling >= 1, self.ceiling

    @property
    def answer(self) -> int | None:
        """The largest size that ran and FITS, None if none did."""
        return max((t.size for t in self.told if t.verdict is Verdict.FITS), default=None)

    @property
    def low(self) -> int:
        """The answer, or 0."""
        return self.answer or 0

    @property
    def high(self) -> int:
        """The smallest failing size above `low`; ceiling + 1 when none failed."""
        failed = (t.size for t in self.told if t.verdict is not Verdict.FITS and t.size > self.low)
        return min(failed, default=self.ceiling + 1)

    def tell(
        self,
        size: int,
        verdict: Verdict,
        peak: int | None = None,
        fixed: int | None = None,
        growing: int | None = None,
    ) -> "Search":
        """The search that also knows how this probe ended."""
        told = Told(size=size, verdict=verdict, peak=peak, fixed=fixed, growing=growing)
        return replace(self, told=(*self.told, told))

    def ask(self) -> int | None:
        """The next size to probe, inside the open bracket; None when the bracket is closed."""
        low, high = self.low, self.high
        fine = 1 if high > self.ceiling else max(1, low // FINE)
        if high - low <= fine:
            return None
        if not self.told:
            return min(self.guess or 1, self.ceiling)
        size = self._halve() if self._is_slow() else self._guided()
        return min(max(size, low + 1), high - 1)

    def _is_slow(self) -> bool:
        """Whether the last two answers together failed to halve the bracket."""
        if len(self.told) < 3:
            return False
        before = replace(self, told=self.told[:-2])
        return self.high - self.low > (before.high - before.low) / 2 and self.high <= self.ceiling

    def _halve(self) -> int:
        return (self.low + self.high) // 2

    def _guided(self) -> int:
        """Where the fit says that the budget ends, held back by what the fit cannot know yet."""
        low, high = self.low, self.high
        points = self._points()
        if len(points) < 2:
            return low * 2 if high > self.ceiling else self._halve()
        (a, height_a), (b, height_b) = self._nearest(points)
        if a == b:  # what is resident before the forward pass is over the budget already
            return self._halve()
        slope = (height_b - height_a) / (b - a)
        steepest = (height_b * (1 + NOISE) - height_a * (1 - NOISE)) / (b - a)
        if slope <= 0:  # a flat start says nothing about where it ends
            return low * LEAP if high > self.ceiling else self._halve()
        expected = int(b + (self.budget - height_b) / slope)
        step = max(1, low // FINE)
        if expected <= low:  # nothing more is expected to fit: close the bracket
            return low + step
        if high <= self.ceiling:  # a failure that the fit did not foresee refutes it
            return expected if expected < high else self._halve()
        careful = int(b + (self.budget - height_b) / steepest)
        if careful - low < step:
            careful = min(expected, low * LEAP)
        return min(careful, low * LEAP**2)

    def _points(self) -> list[tuple[int, int]]:
        """(size, height) by size, the resident bytes at size 0 first; one point a size."""
        points = {
            t.size: t.height
            for t in self.told
            if t.height is not None and t.verdict is not Verdict.OOM
        }
        fixed = [t.fixed for t in self.told if t.fixed is not None]
        if fixed:
            points[0] = fixed[-1]
        return sorted(points.items())

    def _nearest(self, points: list[tuple[int, int]]) -> tuple[tuple[int, int], tuple[int, int]]:
        """The points around the budget, or the two last below it, far enough apart for a slope.

        Two heights closer than a few times the noise give any slope at all.
        """
        above = [p for p in points if p[1] > self.budget]
        below = [p for p in points if p[1] <= self.budget]
        right = above[0] if above else below.pop()
        apart = 5 * NOISE * right[1]
        left = next((p for p in reversed(below) if right[1] - p[1] >= apart), points[0])
        return left, right
