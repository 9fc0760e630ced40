"""How the search and its peers' search algorithms do on thousands of made-up memory curves.

`python -m bench.simulate [--curves 10000] [--result FILE]`: no device, no torch, the same figures
from the same seed. What a probe of a simulated device says is noisy, as on a real one: 1 % on the
peaks, 0.2 % on what is resident before the forward pass, both normal and cut off at three sigma.
Our budget is 60 % of the card. A probe that passes the budget by 5 % of the card is stopped before
its peak is known; one that would have passed the card itself is counted as an OOM all the same. Sizes
beyond a limit that is not memory (the family `cliff`) are refused, and counted apart.

The peers know no target: they see only whether a size ran. So their card *is* the budget, and each
failure of theirs is an OOM. Their algorithms are those of accelerate 1.15
(`find_executable_batch_size`), pytorch-lightning 2.6.6 (`scale_batch_size` with its defaults, the
ceiling as `max_val`) and NeMo (`oomptimizer.py`; it knows no ceiling, here it stops there), read in
their sources; plain bisection is nobody's.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from autotune.devices.group import CPU_NOISE
from autotune.search import AIM, Search
from autotune.verdict import Verdict

RESULTS = Path(__file__).parent / "results" / "search-simulated.json"

BUDGET = 12 * 2**30
CARD = BUDGET / 0.6
HARD_LIMIT = BUDGET + 0.05 * CARD
"""A probe is stopped here, before its peak is known."""
NOISE = 0.01
FIXED_NOISE = 0.002
CEILINGS = (16, 64, 256, 1024, 4096)
LARGEST = 3000
"""Optima are log-uniform in 1..LARGEST, evenly spread in each family."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The memory of one made-up training, without noise; bytes by size."""

    family: str
    ceiling: int
    fixed: int
    growing: Callable[[int], float]
    floor: float = 0.0
    """The optimizer step's peak, whatever the size."""
    tells_growing: bool = True
    limit: int | None = None
    """Larger sizes do not run, whatever their memory."""

    def peak(self, size: int) -> float:
        if self.limit is not None and size > self.limit:
            return math.inf
        return max(self.growing(size), self.floor)

    def largest(self, amount: float = BUDGET) -> int:
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
    refused: int = 0

    def wobble(self, sigma: float) -> float:
        return 1 + min(max(self.random.gauss(0, sigma), -3 * sigma), 3 * sigma)

    def runs(self, size: int) -> bool:
        """What a peer sees: the budget is its card."""
        self.sizes.append(size)
        if not self.takes(size):
            return False
        ran = self.curve.peak(size) * self.wobble(self.noise) <= BUDGET
        self.oom += not ran
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
        fixed = int(self.curve.fixed * self.wobble(min(FIXED_NOISE, self.noise)))
        peak = self.curve.peak(size) * wobble
        self.oom += peak > CARD
        self.over += peak > BUDGET
        if peak > HARD_LIMIT:
            return search.tell(size, Verdict.OVER, None, fixed)
        growing = int(self.curve.growing(size) * wobble) if self.curve.tells_growing else None
        verdict = Verdict.FITS if peak <= BUDGET else Verdict.OVER
        return search.tell(size, verdict, int(peak), fixed, growing)


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


# An algorithm returns the size to train with, None where it gives up.


def ours(device: Device, guess: int | None = None, noise: float = NOISE) -> int | None:
    search = Search(device.curve.ceiling, BUDGET, guess, noise=noise)
    while (size := search.ask()) is not None:
        search = device.probe(search, size)
    return search.answer


def accelerate(device: Device) -> int | None:
    """`find_executable_batch_size`: from the ceiling down by a tenth until one runs."""
    size = device.curve.ceiling
    while size > 0 and not device.runs(size):
        size = int(size * 0.9)
    return size or None


def lightning_power(device: Device) -> int | None:
    """Doubles from 2 until one fails; from `max_val` on it returns the size without running it."""
    size, any_success = 2, False
    for _ in range(25):
        if size == 0 or size >= device.curve.ceiling:
            break
        if device.runs(size):
            size, any_success = size * 2, True
        else:
            size //= 2
            if any_success:
                break
    return size or None


def lightning_binsearch(device: Device) -> int | None:
    """Doubles, bisects, and returns 5 % less (its `margin`): a size that it mostly never ran."""
    low, high, size, ceiling = 1, 0, 2, device.curve.ceiling
    successes = 0
    while size < ceiling:
        if device.runs(size):
            successes += 1
            low = size
            if successes >= 25 or (high and high - low <= 1):
                break
            size = (high + low) // 2 if high else min(size * 2, ceiling)
        else:
            high = size
            size = (high + low) // 2
            if high - low <= 1:
                break
    return max(1, int(size * 0.95))


def nemo(device: Device) -> int | None:
    """Doubles from 32 or halves, then bisects until the gap is 5 % of the failing size."""
    low, high, size = 0, 0, min(32, device.curve.ceiling)
    while size >= 1:
        if device.runs(size):
            low = size
        else:
            high = size
        if low == device.curve.ceiling or (low and high and high - low <= max(1, 0.05 * high)):
            break
        if high:
            size = round((low + high) / 2) if low else round(high / 2)
        else:
            size = min(size * 2, device.curve.ceiling)
    return low or None


def bisection(device: Device) -> int | None:
    """Between 0 and the ceiling until one size is left."""
    low, high = 0, device.curve.ceiling + 1
    while high - low > 1:
        size = (low + high) // 2
        low, high = (size, high) if device.runs(size) else (low, size)
    return low or None


ALGORITHMS: dict[str, Callable[[Device], int | None]] = {
    "chatlm": ours,
    "accelerate": accelerate,
    "Lightning power": lightning_power,
    "Lightning binsearch": lightning_binsearch,
    "NeMo OOMptimizer": nemo,
    "bisection": bisection,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """One curve, tuned once."""

    family: str
    probes: int
    over: int
    oom: int
    refused: int
    answer: int | None
    optimum: int
    was_run: bool

    @property
    def quality(self) -> float:
        """Answer / optimum, at most 1; where nothing fits there is nothing to miss."""
        return min(1.0, (self.answer or 0) / self.optimum) if self.optimum else 1.0


def tune(
    algorithm: Callable[[Device], int | None], curve: Curve, seed: object, noise: float = NOISE
) -> Tuning:
    device = Device(curve, Random(f"noise {seed}"), noise)
    answer = algorithm(device)
    return Tuning(
        family=curve.family,
        probes=len(device.sizes),
        over=device.over,
        oom=device.oom,
        refused=device.refused,
        answer=answer,
        optimum=curve.largest(),
        was_run=answer is None or answer in device.sizes,
    )


def curves(count: int, seed: int = 0) -> Iterator[Curve]:
    """So many curves, the families in turn."""
    names = list(SHAPES)
    golden = (math.sqrt(5) - 1) / 2
    for index in range(count):
        turn, which = divmod(index, len(names))
        yield make(names[which], Random(f"curve {seed} {index}"), turn * golden % 1)


def summary(tunings: list[Tuning]) -> dict[str, float]:
    """The columns of the table."""
    qualities = sorted(tuning.quality for tuning in tunings)
    mean = statistics.fmean
    columns = {
        "probes_mean": mean(t.probes for t in tunings),
        "probes_max": max(t.probes for t in tunings),
        "over_per_tuning": mean(t.over for t in tunings),
        "oom_per_tuning": mean(t.oom for t in tunings),
        "refused_per_tuning": mean(t.refused for t in tunings),
        "quality_mean": mean(qualities),
        "quality_p5": qualities[len(qualities) // 20],
        "share_never_run": mean(not t.was_run for t in tunings),
        "share_not_fitting": mean((t.answer or 0) > t.optimum for t in tunings),
    }
    return {name: round(value, 4) for name, value in columns.items()}


def by_family(tunings: list[Tuning]) -> dict[str, dict[str, float]]:
    """The columns over everything, and by family."""
    rows = {"all": tunings}
    rows |= {name: [t for t in tunings if t.family == name] for name in SHAPES}
    return {name: summary(row) for name, row in rows.items()}


GUESSES = {"right": 1.0, "0.5": 0.5, "0.9": 0.9, "1.1": 1.1, "2": 2.0, "4": 4.0}
"""What becomes of the largest size within AIM of the budget before it is told as a guess."""


def guessed(count: int, noise: float, factor: float) -> dict[str, float]:
    """Second tunings, on the families where memory decides the answer."""
    tunings = []
    for index, curve in enumerate(curves(count, seed=1)):
        right = curve.largest(AIM * BUDGET)
        if not right or curve.family in ("cliff", "never fits", "always fits"):
            continue
        guess = min(curve.ceiling, max(1, int(right * factor)))
        tunings.append(tune(partial(ours, guess=guess), curve, f"guess {index}", noise))
    one = statistics.fmean(tuning.probes == 1 for tuning in tunings)
    return {"share_of_one_probe": round(one, 4), **summary(tunings)}


def repeated(count: int, noise: float) -> dict[str, float]:
    """30 tunings each of affine curves with optima of 150..350, and a second one of each answer.

    The search is told the noise that a CPU's peaks have, as there.
    """
    again_and_again = partial(ours, noise=CPU_NOISE)
    near, spans, again, probes = [], [], [], []
    for index in range(count):
        random = Random(f"repeat {index}")
        fixed, optimum = random.uniform(0.05, 0.6) * BUDGET, random.uniform(150, 350)
        growing = affine(random, optimum, fixed)
        curve = Curve(family="affine", ceiling=1024, fixed=int(fixed), growing=growing)
        tunings = [
            tune(again_and_again, curve, f"first {index} {time}", noise) for time in range(30)
        ]
        answers = [tuning.answer or 0 for tuning in tunings]
        middle = statistics.median_low(answers)
        near += [abs(answer - middle) <= 1 for answer in answers]
        spans.append(max(abs(answer - middle) for answer in answers))
        probes += [tuning.probes for tuning in tunings]
        for time, answer in enumerate(answers):
            second = tune(
                partial(again_and_again, guess=answer), curve, f"second {index} {time}", noise
            )
            again.append(second.answer == answer)
    return {
        "curves": count,
        "tunings_of_each": 30,
        "share_within_1_of_the_median": round(statistics.fmean(near), 4),
        "share_of_curves_all_within_1": round(statistics.fmean(s <= 1 for s in spans), 4),
        "farthest": max(spans),
        "share_the_same_when_told_as_guess": round(statistics.fmean(again), 4),
        "probes_mean": round(statistics.fmean(probes), 4),
    }


def simulate(count: int) -> dict[str, Any]:
    """The whole document, from so many curves."""
    made = list(curves(count))
    return {
        "simulated": True,
        "about": "made-up curves, no device; the peers' card is our budget, their failures are OOMs",
        "curves": count,
        "noise": {"peak": NOISE, "fixed": FIXED_NOISE},
        "algorithms": {
            name: by_family([tune(algorithm, curve, index) for index, curve in enumerate(made)])
            for name, algorithm in ALGORITHMS.items()
        },
        "guess": {
            f"noise {noise}": {
                name: guessed(count // 2, noise, factor) for name, factor in GUESSES.items()
            }
            for noise in (NOISE, 0.002)
        },
        "repeat": {
            f"noise {noise}": repeated(max(1, count // 160), noise)
            for noise in (0.002, 0.001, 0.0005)
        },
    }


def table(document: dict[str, Any]) -> str:
    """Markdown, one row an algorithm, over all families."""
    lines = [
        "| search | probes, mean / max | over budget | OOM | refused | answer ÷ optimum, mean / p5 | answer never run |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, families in document["algorithms"].items():
        row = families["all"]
        lines.append(
            f"| {name} | {row['probes_mean']:.1f} / {row['probes_max']} "
            f"| {row['over_per_tuning']:.2f} | {row['oom_per_tuning']:.2f} "
            f"| {row['refused_per_tuning']:.2f} "
            f"| {row['quality_mean']:.1%} / {row['quality_p5']:.1%} "
            f"| {row['share_never_run']:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curves", type=int, default=10_000)
    parser.add_argument("--result", type=Path)
    arguments = parser.parse_args()
    document = simulate(arguments.curves)
    print(table(document))
    if arguments.result:
        arguments.result.parent.mkdir(parents=True, exist_ok=True)
        arguments.result.write_text(json.dumps(document, indent=1) + "\n")
        print(f"wrote {arguments.result}")


if __name__ == "__main__":
    main()
