"""Memory curves that others measured on real cards: milabench's, in `real_curves.json` (MIT).

A point is everyone's memory as the driver showed it, sampled while a batch size trained. It has what made-up
curves lack: floors, peaks that the sampling missed, kernel switches, jumps of 30 %.

Between two points the memory is on their line, beyond the last on the last line, below the first as high as
there. The ceiling is four times the largest size. The data tell no static memory and no activation peak, so the
search is told neither; `static_share` makes up the first, `tells_growing` calls the peak an activation peak.
A task at which not even size 1 is within 0.99 of the
budget is left out: it has no best answer.
"""

import bisect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from random import Random

from bench.simulated_device import Curve

DATA = Path(__file__).parent / "real_curves.json"
NOISE = 0.003
"""Relative spread of a peak between two runs of one size."""
TARGETS = (0.6, 0.9)
JUDGED_AT = 0.99
"""An answer is compared with the largest size within this share of the budget."""
MIB = 2**20

Point = tuple[float, float]
"""(size, bytes)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One training on one card."""

    card: str
    workload: str
    total: float
    """The card's memory, bytes."""
    points: tuple[Point, ...]
    speeds: tuple[Point, ...]
    """(size, samples/s), where it was measured."""


@cache
def measured() -> tuple[Measured, ...]:
    """All of them."""
    return tuple(
        Measured(
            card=curve["card"],
            workload=curve["workload"],
            total=curve["total_mib"] * MIB,
            points=tuple((size, mib * MIB) for size, mib, _ in curve["points"]),
            speeds=tuple((size, speed) for size, _, speed in curve["points"] if speed),
        )
        for curve in json.loads(DATA.read_text())["curves"]
    )


def between(points: Sequence[Point], size: float) -> float:
    """The value at that size; beyond the last point on the last line."""
    if size <= points[0][0]:
        return points[0][1]
    right = min(bisect.bisect_left(points, (size,)), len(points) - 1)
    (a, low), (b, high) = points[right - 1], points[right]
    return low + (high - low) * (size - a) / (b - a)


def task(
    one: Measured, target: float, static_share: float | None = None, tells_growing: bool = False
) -> Curve:
    """The curve under that target."""
    fixed = None if static_share is None else int(static_share * one.points[0][1])
    return Curve(
        family=one.workload,
        ceiling=max(1, int(4 * one.points[-1][0])),
        fixed=fixed,
        growing=partial(between, one.points),
        tells_growing=tells_growing,
        budget=target * one.total,
        card=one.total,
        judged_at=JUDGED_AT,
    )


def tasks(
    *,
    targets: Sequence[float] = TARGETS,
    static_share: float | None = None,
    tells_growing: bool = False,
) -> Iterator[Curve]:
    """Every curve at every target where something fits."""
    for one in measured():
        for target in targets:
            if (curve := task(one, target, static_share, tells_growing)).optimum:
                yield curve


def moved(count: int, *, static_share: float | None = None) -> Iterator[Curve]:
    """Made-up copies, to see what hangs on these very curves: other sizes, memory and budgets.

    All sizes are multiplied by 0.7..1.4, the memory above size 1 by 0.9..1.1 and each further rise by
    0.8..1.25; targets are 0.5..0.95.
    """
    for index in range(count):
        random = Random(f"moved {index}")
        one = measured()[index % len(measured())]
        wider, higher = random.uniform(0.7, 1.4), random.uniform(0.9, 1.1)
        points = [one.points[0]]
        for (_, before), (size, after) in zip(one.points, one.points[1:], strict=False):
            rise = (after - before) * higher * random.uniform(0.8, 1.25)
            points.append((max(points[-1][0] + 1, size * wider), points[-1][1] + rise))
        copy = Measured(
            card=one.card, workload=one.workload, total=one.total, points=tuple(points), speeds=()
        )
        if (curve := task(copy, random.uniform(0.5, 0.95), static_share)).optimum:
            yield curve
