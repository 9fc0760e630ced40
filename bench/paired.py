"""Ratios of speed: each of two runs that met the same machine, one right after the other."""

import statistics
from collections.abc import Sequence
from typing import TypedDict


class Ratio(TypedDict):
    """How many times as much: the median over the rounds, and how far they went apart."""

    median: float
    least: float
    most: float


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Ours to theirs, round by round; raises ValueError where they are not as many."""
    return of_rounds([one / other for one, other in zip(ours, theirs, strict=True)])


def of_rounds(ratios: Sequence[float]) -> Ratio:
    """The ratios of the rounds as one."""
    return Ratio(median=statistics.median(ratios), least=min(ratios), most=max(ratios))


def spread(ratio: Ratio) -> float:
    """Half the way from the least to the most, as a share of the median."""
    return (ratio["most"] - ratio["least"]) / 2 / ratio["median"]


def words(ratio: Ratio) -> str:
    """As tables have it: `1.84 × (1.79–1.90)`."""
    return f"{ratio['median']:.2f} × ({ratio['least']:.2f}–{ratio['most']:.2f})"
