"""The knee: the smallest size that is as fast as any. Beyond it a larger one costs memory for nothing."""

from collections.abc import Mapping

SPEED_SHARE = 0.97
"""A size is as fast as any when it has this share of the best speed: timings are noisy."""


def knee(speeds: Mapping[int, float]) -> int:
    """Of sizes and their speeds, at least one, the smallest within 3 % of the best."""
    best = max(speeds.values())
    return min(size for size, speed in speeds.items() if speed >= SPEED_SHARE * best)
