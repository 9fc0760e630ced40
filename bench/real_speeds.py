"""`--prefer throughput` on the speeds of real cards: how fast is the size that it takes?

The speeds are milabench's (`real_curves`), on lines between the measured sizes. A simulated probe times three
steps. Each is off by 1 %, and one probe in six is disturbed: its steps are off by 8 %. The first probes are the
search's for memory; those for the speed come after.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from autotune.search import Search
from autotune.trial import Trial, choose
from autotune.tuning.loop import SPEED_PROBES, next_for_speed
from autotune.verdict import Verdict
from bench import real_curves
from bench.simulated_device import Curve, Device

STEPS = 3
STEP_NOISE = 0.01
DISTURBED, DISTURBED_NOISE = 1 / 6, 0.08


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One tuning for throughput."""

    more_probes: int
    """Beyond those of the search for memory."""
    share: float
    """The true speed of the size that was taken, as a share of the best speed of any that fits."""


def tasks() -> Iterator[tuple[real_curves.Measured, Curve]]:
    """Every curve with speeds at every target where something fits."""
    for one in real_curves.measured():
        for target in real_curves.TARGETS if one.speeds else ():
            if (curve := real_curves.task(one, target)).optimum:
                yield one, curve


def timed_trial(one: real_curves.Measured, size: int, random: Random) -> Trial:
    """A trial that fits, with the speed that its steps show."""
    noise = DISTURBED_NOISE if random.random() < DISTURBED else STEP_NOISE
    steps = [max(0.5, random.gauss(1, noise)) for _ in range(STEPS)]
    mean = sum(steps) / len(steps)
    return Trial(
        size=size,
        verdict=Verdict.FITS,
        peak=None,
        seconds=1.0,
        samples_per_second=real_curves.between(one.speeds, size) / mean,
        speed_spread=(max(steps) - min(steps)) / mean,
    )


def tune_for_speed(one: real_curves.Measured, curve: Curve, seed: object) -> Timed:
    """The search for memory, then the probes for the speed, as `autotune.tuning.loop` asks for them."""
    random = Random(f"speed {seed}")
    device = Device(curve, random, real_curves.NOISE)
    search = Search(curve.ceiling, int(curve.budget))
    while (size := search.ask()) is not None:
        search = device.probe(search, size)
    fits = [told.size for told in search.observations if told.verdict is Verdict.FITS]
    trials = [timed_trial(one, size, random) for size in fits]
    more = 0
    while more < SPEED_PROBES and (size := next_for_speed(trials)) is not None:
        trials.append(timed_trial(one, size, random))
        more += 1
    chosen = choose(trials, "throughput")
    best = max(real_curves.between(one.speeds, size) for size in range(1, curve.optimum + 1))
    taken = 0.0 if chosen is None else real_curves.between(one.speeds, chosen.size)
    return Timed(more_probes=more, share=min(1.0, taken / best))


def for_throughput(repeats: int) -> dict[str, float]:
    """How near to the best speed, and with how many probes more, over all tasks, each so often."""
    tunings = [
        tune_for_speed(one, curve, f"{index} {time}")
        for index, (one, curve) in enumerate(tasks())
        for time in range(repeats)
    ]
    shares = sorted(tuning.share for tuning in tunings)
    more = [tuning.more_probes for tuning in tunings]
    return {
        "tasks": len(tunings) // repeats,
        "speed_mean": round(sum(shares) / len(shares), 4),
        "speed_p5": round(shares[len(shares) // 20], 4),
        "speed_min": round(shares[0], 4),
        "more_probes_mean": round(sum(more) / len(more), 4),
        "more_probes_max": max(more),
    }
