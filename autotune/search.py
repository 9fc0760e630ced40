"""Which size to probe next: an immutable ask/tell over integers, and nothing else.

It keeps a *bracket*, the largest size that fits and the smallest that does not, and a *line* through two
peaks, which predicts the size that fills the budget. The answer always comes from the bracket, so a wrong
line costs probes and never gives a wrong answer.

1. Probe the guess, or size 1. The static memory is the point at size 0; the two points give a line. Once two
   larger sizes give a slope, they replace size 0, since the first sample may cost more than the next.
2. Before the first failure, probe where the line reaches the aim, with the slope raised by its noise. The
   line from size 0 is steeper than a curve that starts with a jump or on a floor, so sizes up to its end
   are safe. Beyond it, a step multiplies the largest proven size by `MAX_GROWTH` at most.
3. After a failure, probe where the line ends. If that is not below the failure, halve the bracket: the
   curve has a cliff or a bend.
4. Stop when the line predicts no gain that is worth a probe. That gain grows with the number of probes.

The peak of forward and backward is close to `fixed + k · size`. The optimizer step sets a floor that does
not grow, so the line uses `activation_peak` where it is known. On a GPU, and where only whole peaks are known, as
a driver shows them, the curve is *rough*: it has floors, bends and jumps. Then

5. most of size 1's peak counts as static, sizes on the floor give no slope, a bend of the last three points
   raises the slope's doubt, and a step that more than doubles the size aims below the budget, to end near it;
6. a larger gain is needed for a further probe, since what the line predicts is less certain.

`python -m bench.simulate` shows what the constants cost and save, over thousands of made-up curves and on
those of real cards.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from autotune.verdict import Verdict

AIM = 0.99
"""Share of the budget to aim at: training peaks within 1 % of its probe."""
NOISE = 0.01
"""Relative spread of a peak between two runs of one size; the default."""
SLOPE_SIGMAS = 1.6
"""Standard deviations by which the slope is raised before a step upwards."""
MAX_GROWTH = 4
"""The most that a step upwards multiplies the largest proven size by, beyond the line from size 0."""
UNTOLD_GROWTH = 6
"""`MAX_GROWTH` where no static memory is told: the line from size 0 is then steeper than it need be."""
MIN_RISE = 5
"""Two peaks give a slope if they differ by this many times the noise."""
MIN_GAIN = (0.03, 0.005, 0.03, 0.015, 0.015, 0.02, 0.02, 0.03, 0.05)
"""The gain that is worth another probe, as a share of the answer, by the number of probes so far. It is
large after a guess (the first) and after the first step to the end (the third), where one more probe costs
as much as all before it. Elsewhere it is small, so that a second tuning gives the same answer."""
MAX_PROBES = 10
"""Probes after which the answer is final, if there is one."""

ROUGH_GAIN = (0.03, 0.03, 0.035, 0.04, 0.05, 0.06, 0.08, 0.15, 0.15)
"""`MIN_GAIN` on a rough curve."""
ROUGH_STATIC = 0.7
"""The least share of size 1's peak that counts as static on a rough curve: a sample is small beside weights,
optimizer and context."""
FAR_AIM = 0.94
"""Share of the budget to aim at with a step that more than doubles the size, on a rough curve."""
BEND_DOUBT = 0.6
"""The share of the last change of slope by which the next slope is raised, on a rough curve."""
STALLED = 5
"""Failures in a row after which the bracket is halved, whatever the line says, on a rough curve."""

Point = tuple[int, int]
"""(size, bytes)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The result of one probe; bytes."""

    size: int
    verdict: Verdict
    peak: int | None = None
    static_bytes: int | None = None
    activation_peak: int | None = None

    @property
    def height(self) -> int | None:
        """The peak that the line uses: the activation peak, or the whole peak of a size that is over."""
        is_over = self.verdict is Verdict.OVER
        return self.peak if self.activation_peak is None or is_over else self.activation_peak


@dataclass(frozen=True, slots=True)
class Search:
    """Finds the largest size in 1..ceiling whose peak is within the budget (bytes).

    `guess` is a size worth trying first: the answer of an earlier tuning. Without one the first
    probe is at size 1, the safest. `noise` is the relative spread of a peak, where it is known.
    """

    ceiling: int
    budget: int
    guess: int | None = None
    observations: tuple[Observation, ...] = field(default=())
    noise: float = NOISE
    is_rough: bool = False
    """Whether the device switches kernels and workspaces by size, as a GPU does."""

    def __post_init__(self) -> None:
        assert self.ceiling >= 1, self.ceiling

    @property
    def answer(self) -> int | None:
        """The largest size that ran and FITS, None if none did."""
        return max((t.size for t in self.observations if t.verdict is Verdict.FITS), default=None)

    @property
    def low(self) -> int:
        """The answer, or 0."""
        return self.answer or 0

    @property
    def high(self) -> int:
        """The smallest failing size above `low`; ceiling + 1 when none failed."""
        failed = (
            t.size for t in self.observations if t.verdict is not Verdict.FITS and t.size > self.low
        )
        return min(failed, default=self.ceiling + 1)

    def tell(
        self,
        size: int,
        verdict: Verdict,
        peak: int | None = None,
        fixed: int | None = None,
        growing: int | None = None,
    ) -> "Search":
        """The search after this probe; bytes. Without a peak the line gets no new point."""
        told = Observation(
            size=size, verdict=verdict, peak=peak, static_bytes=fixed, activation_peak=growing
        )
        return replace(self, observations=(*self.observations, told))

    def ask(self) -> int | None:
        """The next size to probe, inside the open bracket; None when none is worth a probe."""
        low, high, spent = self.low, self.high, len(self.observations)
        if not spent:
            return min(self.guess or 1, self.ceiling)
        if high == 1 or (low and spent >= min(MAX_PROBES, 2 * math.log2(self.ceiling) + 1)):
            return None
        line = self._line()
        end = min(line.end if line else math.inf, high - 1)
        if low and end - low < max(1, self._gain_worth_a_probe() * low):
            return None
        lost = not low and spent > MAX_PROBES / 2
        size = self._reach(line) if line and not lost else self._halve()
        return min(max(size, low + 1), high - 1)

    @property
    def _is_rough(self) -> bool:
        """Whether the device's curves are rough, or only whole peaks are known."""
        return self.is_rough or all(t.activation_peak is None for t in self.observations)

    @property
    def _knows_floor(self) -> bool:
        """Whether a floor was seen above a static memory that was told: the line above it is exact."""
        told = self._static_bytes() is not None
        return told and len(on_floor(self._points(), self.noise)) > 1

    def _gain_worth_a_probe(self) -> float:
        """As a share of the answer."""
        spent = min(len(self.observations), len(MIN_GAIN)) - 1
        rough = self._is_rough and not self._knows_floor
        return max(MIN_GAIN[spent], ROUGH_GAIN[spent] if rough else 0)

    def _reach(self, line: "Line") -> int:
        """The size at which the line reaches the aim; before the first failure with the caps of step 2."""
        if self.high <= self.ceiling:
            failed = [t.verdict is not Verdict.FITS for t in self.observations[-STALLED:]]
            stalled = self._is_rough and self.low and sum(failed) == STALLED
            return int(line.end) if line.end < self.high and not stalled else self._halve()
        size, height = line.right
        room = AIM * self.budget - height
        doubt = SLOPE_SIGMAS * line.spread
        from_zero = (height - self._points()[0][1]) / size
        growth = UNTOLD_GROWTH if self._static_bytes() is None else MAX_GROWTH
        farthest = max(room / (from_zero + doubt), (growth - 1) * size)
        if self._is_rough and not self._knows_floor:
            doubt = max(doubt, BEND_DOUBT * bend(self._points()[1:], size, self.noise))
            if room / (line.slope + doubt) > size > 1:
                room = FAR_AIM * self.budget - height
        return size + int(min(farthest, room / (line.slope + doubt)))

    def _halve(self) -> int:
        """The middle of the bracket: arithmetic where its upper end ran, else geometric."""
        low, high = self.low, self.high
        failed = [t for t in self.observations if t.size == high and t.verdict is Verdict.OVER]
        if not low:
            return high // (2 if failed and len(self.observations) == 1 else 4)
        ran = any(t.peak is not None or not self._is_rough for t in failed)
        return (low + high) // 2 if ran else math.isqrt(low * high)

    def _points(self) -> list[Point]:
        """The known peaks by size, and the static memory at size 0."""
        heights = {t.size: t.height for t in self.observations if t.verdict is not Verdict.OOM}
        points = {size: height for size, height in heights.items() if height is not None}
        static = self._static_bytes() or 0
        if self._is_rough and 1 in points:
            static = max(static, int(ROUGH_STATIC * points[1]))
        return [(0, static), *sorted(points.items())]

    def _static_bytes(self) -> int | None:
        """What was told last."""
        told = (t.static_bytes for t in reversed(self.observations))
        return next((amount for amount in told if amount is not None), None)

    def _line(self) -> "Line | None":
        """The line near the budget; None where no size has a peak."""
        points = self._points()
        if len(points) == 1:
            return None
        floor = on_floor(points, self.noise) if self._is_rough else []
        if 1 < len(floor) < len(points) - 1:
            told = self._static_bytes()
            points = [points[0] if told is None else (0, told), *points[1 + len(floor) :]]
        line = Line.through(points, self.low, AIM * self.budget, self.noise)
        if line.right[0] > 1:
            return line
        # Only size 1 is known: the next samples may be cheaper, and its peak may be a floor.
        return replace(line, end=max(1 + 1.5 * (line.end - 1), 2.0 if self._is_rough else 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Bytes by size around the budget."""

    right: Point
    """The point that it goes through: the first above the aim, or the last below it."""
    slope: float
    """Bytes a size; 0 on a floor."""
    spread: float
    """Standard error of the slope."""
    end: float
    """The size at which it reaches the aim."""

    @classmethod
    def through(cls, points: list[Point], low: int, aim: float, noise: float) -> "Line":
        """The line from the right point to the nearest point left of it that gives a slope."""
        above = [p for p in points if p[1] > aim and p[0] >= max(1, low)]
        right = above[0] if above else points[-1]
        left = next((p for p in reversed(points[1:]) if tells_slope(p, right, noise)), points[0])
        run = right[0] - left[0]
        slope = max(0.0, (right[1] - left[1]) / run)
        spread = noise * math.hypot(right[1], left[1] if left[0] else 0, 1) / run
        end = right[0] + (aim - right[1]) / slope if slope else math.inf
        return cls(right=right, slope=slope, spread=spread, end=end)


def tells_slope(left: Point, right: Point, noise: float) -> bool:
    """Whether two points are far enough apart, in size or in bytes, to give a slope."""
    high = right[1] - left[1] >= MIN_RISE * noise * right[1]
    return left[0] < right[0] and (high or 2 * left[0] <= right[0])


def on_floor(points: list[Point], noise: float) -> list[Point]:
    """The smallest sizes that lie as high as the first of them, within the noise; `points` begin with size 0."""
    known = points[1:]
    return list(itertools.takewhile(lambda p: p[1] <= (1 + MIN_RISE * noise) * known[0][1], known))


def bend(points: list[Point], size: int, noise: float) -> float:
    """By how much the slope changes over the last three points up to the size, beyond the noise; bytes a size."""
    last = [p for p in points if p[0] <= size][-3:]
    if len(last) < 3:
        return 0.0
    (a, low), (b, middle), (c, high) = last
    change = (high - middle) / (c - b) - (middle - low) / (b - a)
    blur = noise * math.hypot(math.hypot(high, middle) / (c - b), math.hypot(middle, low) / (b - a))
    return max(0.0, abs(change) - blur)


SPEED_SHARE = 0.97
"""A size counts as fastest from this share of the best speed on, since timings are noisy."""


def knee(speeds: Mapping[int, float]) -> int:
    """The smallest size within 3 % of the best speed; `speeds` (samples/s by size) is not empty."""
    best = max(speeds.values())
    return min(size for size, speed in speeds.items() if speed >= SPEED_SHARE * best)
