"""How memory grows with the micro-batch: a straight line through the measured peaks."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression

from autotune.trial import Trial

TOLERANCE = 0.03
"""A peak further than this share from the line lies on another part of the curve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFit:
    """`peak ≈ fixed + slope × size`, bytes."""

    fixed: float
    slope: float
    trials: int
    error: float
    """Largest distance of a trial from the line, as a share of its peak."""

    def reaches(self, budget: float) -> int:
        """The size at which the line meets the budget; never below 0."""
        return max(0, int((budget - self.fixed) / self.slope))


def fit_line(trials: Sequence[Trial]) -> MemoryFit | None:
    """The least-squares line through the largest sizes; None where there is no slope to measure.

    The peak is a maximum of affine functions: at small sizes the optimizer step is a floor. The
    smallest sizes are left out until the rest is straight. Unequal devices have no single line.
    """
    points = sorted({t.size: t.peak for t in trials if t.peak is not None}.items())
    if not all(trial.is_even for trial in trials):
        return None
    for first in range(len(points) - 1):
        sizes, peaks = zip(*points[first:], strict=True)
        slope, fixed = linear_regression(sizes, peaks)
        error = max(abs(fixed + slope * n - peak) / max(1, peak) for n, peak in points[first:])
        if error <= TOLERANCE:
            if slope * (sizes[-1] - sizes[0]) <= 0.02 * peaks[-1]:
                return None  # a floor: a rise of 2 % over the whole line is noise
            return MemoryFit(fixed=fixed, slope=slope, trials=len(sizes), error=error)
    return None
