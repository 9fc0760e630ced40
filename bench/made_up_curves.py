"""Memory curves that are made up, in families: what memory can look like against the size, and seldom all at once."""

import math
from collections.abc import Callable, Iterator
from random import Random

from bench.simulated_device import BUDGET, Curve

CEILINGS = (16, 64, 256, 1024, 4096)
LARGEST = 3000
"""Optima are log-uniform in 1..LARGEST, evenly spread in each family."""


def affine(random: Random, optimum: float, fixed: float) -> Callable[[int], float]:
    return lambda size: fixed + (BUDGET - fixed) * size / optimum


def offset(random: Random, optimum: float, fixed: float) -> Callable[[int], float]:
    """A workspace that appears with the first sample."""
    constant = random.uniform(0.02, 0.2) * (BUDGET - fixed)
    return lambda size: fixed + constant + (BUDGET - fixed - constant) * size / optimum


def steeper(random: Random, optimum: float, fixed: float) -> Callable[[int], float]:
    """A kernel switch makes every further sample dearer."""
    return kinked(random.uniform(1.2, 2.0), random, optimum, fixed)


def flatter(random: Random, optimum: float, fixed: float) -> Callable[[int], float]:
    """A kernel switch makes every further sample cheaper."""
    return kinked(random.uniform(0.5, 0.8), random, optimum, fixed)


def kinked(turn: float, random: Random, optimum: float, fixed: float) -> Callable[[int], float]:
    kink = random.uniform(0.1, 0.9) * optimum
    slope = (BUDGET - fixed) / (kink + turn * (optimum - kink))
    return lambda size: fixed + slope * (min(size, kink) + turn * max(0.0, size - kink))


def rounded(random: Random, optimum: float, fixed: float) -> Callable[[int], float]:
    """Each of 24 layers' share is rounded up to 2 MiB, as the allocator's blocks are."""
    share = (BUDGET - fixed) / optimum / 24
    block = 2 * 2**20
    return lambda size: fixed + 24 * math.ceil(share * size / block) * block


def concave(random: Random, optimum: float, fixed: float) -> Callable[[int], float]:
    return lambda size: fixed + (BUDGET - fixed) * (size / optimum) ** 0.8


def convex(random: Random, optimum: float, fixed: float) -> Callable[[int], float]:
    return lambda size: fixed + (BUDGET - fixed) * (size / optimum) ** 1.2


SHAPES = {
    "affine": affine,
    "offset": offset,
    "flat start": affine,
    "flat start, untold": affine,
    "steeper": steeper,
    "flatter": flatter,
    "rounded": rounded,
    "concave": concave,
    "convex": convex,
    "cliff": affine,
    "never fits": affine,
    "always fits": affine,
    "fits only 1": affine,
}
"""The families by name, and the shape of what grows."""


def make(family: str, random: Random, place: float) -> Curve:
    """A curve of the family; its optimum is at the place, 0..1, between 1 and LARGEST."""
    optimum = LARGEST**place + random.random()
    if family == "fits only 1":
        optimum = random.uniform(1, 2)
    fixed = random.uniform(0.05, 0.6) * BUDGET
    ceiling = random.choice([c for c in CEILINGS if c >= optimum])
    if family == "never fits":
        optimum = random.uniform(0.5, 1)
    if family == "always fits":
        optimum = ceiling * math.exp(random.uniform(0, 3))
    growing = SHAPES[family](random, optimum, fixed)
    floor = fixed + random.uniform(0.2, 0.7) * (BUDGET - fixed)
    limit = math.exp(random.uniform(0, math.log(optimum)))
    return Curve(
        family=family,
        ceiling=ceiling,
        fixed=int(fixed),
        growing=growing,
        floor=floor if family.startswith("flat start") else 0.0,
        tells_growing=family != "flat start, untold",
        limit=int(limit) if family == "cliff" else None,
    )


def curves(count: int, seed: int = 0) -> Iterator[Curve]:
    """So many curves, the families in turn."""
    names = list(SHAPES)
    golden = (math.sqrt(5) - 1) / 2
    for index in range(count):
        turn, which = divmod(index, len(names))
        yield make(names[which], Random(f"curve {seed} {index}"), turn * golden % 1)
