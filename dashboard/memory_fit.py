"""The line that the peaks lie on: how memory grows with the micro-batch, as far as was measured."""

from collections.abc import Sequence
from dataclasses import dataclass

from autotune.trial import Trial

TOLERANCE = 0.03
"""A peak further than this share from the line lies on another piece of the curve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFit:
    """`peak ≈ fixed + slope × size`, bytes."""

    fixed: float
    slope: float
    trials: int
    """How many trials it goes through."""
    error: float
    """Largest distance of such a trial from the line, as a share of its peak."""

    def reaches(self, budget: float) -> int:
        """The size at which the line meets the budget; never below 0."""
        return max(0, int((budget - self.fixed) / self.slope))


def fit_line(trials: Sequence[Trial]) -> MemoryFit | None:
    """The line through the largest measured sizes; None when they do not tell a slope.

    The peak is a maximum of affine pieces: at small sizes the optimizer step is the floor. So the
    smallest sizes are left out until what remains is straight. Where the devices' sizes differ there
    is no one line.
    """
    if not all(trial.is_even for trial in trials):
        return None
    points = sorted({t.size: t.peak for t in trials if t.peak is not None}.items())
    while len(points) >= 2:
        line = least_squares(points)
        if line.error <= TOLERANCE:
            # A floor has no slope worth a line: 2 % over its whole length is noise.
            rise = line.slope * (points[-1][0] - points[0][0])
            return line if rise > 0.02 * points[-1][1] else None
        points = points[1:]
    return None


def least_squares(points: Sequence[tuple[int, int]]) -> MemoryFit:
    count = len(points)
    mean_size = sum(size for size, _ in points) / count
    mean_peak = sum(peak for _, peak in points) / count
    spread = sum((size - mean_size) ** 2 for size, _ in points)
    slope = sum((size - mean_size) * (peak - mean_peak) for size, peak in points) / spread
    fixed = mean_peak - slope * mean_size
    error = max(abs(fixed + slope * size - peak) / max(1, peak) for size, peak in points)
    return MemoryFit(fixed=fixed, slope=slope, trials=count, error=error)
