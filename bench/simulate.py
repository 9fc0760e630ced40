"""How the search and its peers' search algorithms do on memory curves: thousands of made-up ones, and
71 that others measured on real cards.

`python -m bench.simulate [--curves 10000] [--result FILE]`: no device, no torch, the same figures from the same
seed. `simulated_device` says what a probe tells, `made_up_curves` and `real_curves` what memory looks like,
`search_algorithms` what each search does.

Our budget is 60 % of the card on made-up curves. An OOM is a probe that would have passed the card itself.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from autotune import search
from autotune.devices.group import CPU_NOISE
from autotune.search import AIM
from bench import real_curves, real_speeds
from bench.made_up_curves import SHAPES, affine, curves
from bench.search_algorithms import ALGORITHMS, ours
from bench.simulated_device import BUDGET, FIXED_NOISE, NOISE, Curve, Device

RESULTS = Path(__file__).parent / "results" / "search-simulated.json"

REPEATS = 10
"""Tunings of each curve of a real card at each target."""
TOLD = 0.6
"""The share of size 1's peak that a variant tells as resident before the forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """One curve, tuned once."""

    family: str
    probes: int
    over: int
    oom: int
    stopped: int
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
        stopped=device.stopped,
        refused=device.refused,
        answer=answer,
        optimum=curve.optimum,
        was_run=answer is None or answer in device.sizes,
    )


def summary(tunings: list[Tuning]) -> dict[str, float]:
    """The columns of the table."""
    qualities = sorted(tuning.quality for tuning in tunings)
    mean = statistics.fmean
    columns = {
        "probes_mean": mean(t.probes for t in tunings),
        "probes_max": max(t.probes for t in tunings),
        "over_per_tuning": mean(t.over for t in tunings),
        "oom_per_tuning": mean(t.oom for t in tunings),
        "stopped_per_tuning": mean(t.stopped for t in tunings),
        "refused_per_tuning": mean(t.refused for t in tunings),
        "quality_mean": mean(qualities),
        "quality_p5": qualities[len(qualities) // 20],
        "quality_min": qualities[0],
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


def on_real_cards(
    algorithm: Callable[[Device], int | None], tasks: Iterable[Curve], repeats: int = REPEATS
) -> dict[str, float]:
    """The columns over the curves, each tuned so often, with the noise of a real card."""
    return summary(
        [
            tune(algorithm, curve, f"real {index} {time}", real_curves.NOISE)
            for index, curve in enumerate(tasks)
            for time in range(repeats)
        ]
    )


def frontier(tasks: Sequence[Curve]) -> dict[str, dict[str, float]]:
    """The columns with other constants of the search: what fewer probes cost, and fewer failures."""
    gains, aim = search.ROUGH_GAIN, search.FAR_AIM
    rows = {}
    for factor in (0.5, 0.75, 1.0, 1.5, 2.0):
        setattr(search, "ROUGH_GAIN", tuple(factor * gain for gain in gains))  # noqa: B010
        rows[f"gains × {factor}"] = on_real_cards(ours, tasks)
    search.ROUGH_GAIN = gains
    for far in (0.9, 0.92, 0.97, 0.99):
        search.FAR_AIM = far
        rows[f"far steps aim at {far}"] = on_real_cards(ours, tasks)
    search.FAR_AIM = aim
    return rows


def real_cards() -> dict[str, Any]:
    """Everyone's search on the measured curves, and ours where more or less is told or all is moved."""
    tasks = list(real_curves.tasks())
    told = list(real_curves.tasks(static_share=TOLD))
    moved = list(real_curves.moved(10 * len(tasks)))
    informed = partial(ours, noise=real_curves.NOISE)
    return {
        "measured_by_others": True,
        "curves": len(real_curves.measured()),
        "tasks": len(tasks),
        "repeats": REPEATS,
        "noise": real_curves.NOISE,
        "algorithms": {name: on_real_cards(one, tasks) for name, one in ALGORITHMS.items()},
        "frontier": frontier(tasks),
        "throughput": real_speeds.for_throughput(REPEATS),
        "variants": {
            "at target 0.6": on_real_cards(ours, real_curves.tasks(targets=(0.6,))),
            "at target 0.9": on_real_cards(ours, real_curves.tasks(targets=(0.9,))),
            "told the noise": on_real_cards(informed, tasks),
            "told 60 % of the first peak as static": on_real_cards(ours, told),
            "told activation peaks too, as of a GPU": on_real_cards(
                partial(ours, is_rough=True),
                real_curves.tasks(static_share=TOLD, tells_growing=True),
            ),
            "told activation peaks too, as of a CPU": on_real_cards(
                ours, real_curves.tasks(static_share=TOLD, tells_growing=True)
            ),
            "told both": on_real_cards(informed, told),
            "moved": on_real_cards(ours, moved, 1),
            "moved, told both": on_real_cards(
                informed, real_curves.moved(10 * len(tasks), static_share=TOLD), 1
            ),
        },
    }


def simulate(count: int) -> dict[str, Any]:
    """The whole document, from so many curves."""
    made = list(curves(count))
    return {
        "simulated": True,
        "about": "no device; the peers' card is our budget, their failures are OOMs",
        "curves": count,
        "noise": {"peak": NOISE, "fixed": FIXED_NOISE},
        "algorithms": {
            name: by_family([tune(algorithm, curve, index) for index, curve in enumerate(made)])
            for name, algorithm in ALGORITHMS.items()
        },
        "real_cards": real_cards(),
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
    """Markdown, one row an algorithm, over all made-up families."""
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


def real_table(document: dict[str, Any]) -> str:
    """Markdown, one row an algorithm on the curves of real cards, then ours in its variants."""
    real = document["real_cards"]
    variants = {f"chatlm, {name}": row for name, row in real["variants"].items()}
    return real_rows(real["algorithms"] | variants)


def frontier_table(document: dict[str, Any]) -> str:
    """Markdown, one row a choice of the constants."""
    return real_rows({f"chatlm, {n}": r for n, r in document["real_cards"]["frontier"].items()})


def real_rows(rows: Mapping[str, dict[str, float]]) -> str:
    """Markdown; a peer knows no target, so each of its failures is an OOM."""
    lines = [
        "| search | probes, mean / max | over budget | stopped or OOM | answer ÷ best, mean / p5 / worst |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        over = row["over_per_tuning"] if name.startswith("chatlm") else row["oom_per_tuning"]
        lines.append(
            f"| {name} | {row['probes_mean']:.2f} / {row['probes_max']} "
            f"| {over:.2f} | {row['stopped_per_tuning']:.3f} "
            f"| {row['quality_mean']:.1%} / {row['quality_p5']:.1%} / {row['quality_min']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curves", type=int, default=10_000)
    parser.add_argument("--result", type=Path)
    arguments = parser.parse_args()
    document = simulate(arguments.curves)
    print(table(document), real_table(document), frontier_table(document), sep="\n\n")
    if arguments.result:
        arguments.result.parent.mkdir(parents=True, exist_ok=True)
        arguments.result.write_text(json.dumps(document, indent=1) + "\n")
        print(f"wrote {arguments.result}")


if __name__ == "__main__":
    main()
