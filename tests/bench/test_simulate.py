"""What the search promises on average, over the curves of the committed simulation."""

import json
import math
from random import Random

import pytest

from bench import real_curves, real_speeds
from bench.made_up_curves import curves
from bench.search_algorithms import (
    ALGORITHMS,
    accelerate,
    bisection,
    lightning_binsearch,
    lightning_power,
    nemo,
    ours,
)
from bench.simulate import (
    RESULTS,
    Tuning,
    guessed,
    on_real_cards,
    repeated,
    summary,
    table,
    tune,
)
from bench.simulated_device import Curve, Device


@pytest.fixture(scope="module")
def tunings() -> list[Tuning]:
    """Ours, over all families."""
    return [tune(ours, curve, index) for index, curve in enumerate(curves(10_000))]


@pytest.mark.parametrize(
    ("families", "column", "least", "most"),
    [
        ("all", "probes_mean", 1, 4.5),
        ("all", "probes_max", 1, 10),
        ("affine", "probes_mean", 1, 3.5),
        ("affine", "probes_max", 1, 8),
        ("all", "over_per_tuning", 0, 0.5),
        ("all", "oom_per_tuning", 0, 0.05),  # without a hard limit
        ("all", "quality_mean", 0.98, math.inf),
        ("all", "quality_p5", 0.95, math.inf),
        ("all", "share_never_run", 0, 0),
    ],
)
def test_the_search_keeps_its_promises(
    families: str, column: str, least: float, most: float, tunings: list[Tuning]
) -> None:
    """Few probes, fewer for an affine curve at 1 % noise; few over budget; an answer that ran."""
    chosen = [tuning for tuning in tunings if families in ("all", tuning.family)]

    assert least <= summary(chosen)[column] <= most


@pytest.fixture(scope="module")
def on_real() -> dict[str, float]:
    """Ours, on the curves of real cards."""
    return on_real_cards(ours, real_curves.tasks())


@pytest.mark.parametrize(
    ("column", "least", "most"),
    [
        ("probes_mean", 1, 4.3),
        ("probes_max", 1, 8),
        ("stopped_per_tuning", 0, 0.155),
        ("oom_per_tuning", 0, 0.1),
        ("over_per_tuning", 0, 0.35),
        ("quality_mean", 0.99, 1),
        ("quality_p5", 0.96, 1),
        ("quality_min", 0.88, 1),
        ("share_never_run", 0, 0),
    ],
)
def test_the_search_keeps_its_promises_on_real_cards(
    column: str, least: float, most: float, on_real: dict[str, float]
) -> None:
    """On curves with floors, bends and jumps, of which only whole peaks are told."""
    assert least <= on_real[column] <= most


def test_the_promises_do_not_hang_on_these_very_curves() -> None:
    """Other sizes, memory and targets: a little more of everything, and a static memory that is told."""
    moved = on_real_cards(ours, real_curves.moved(426), 1)
    told = on_real_cards(ours, real_curves.tasks(static_share=0.6), 2)

    assert moved["probes_mean"] <= 4.7
    assert moved["quality_mean"] >= 0.985
    assert told["probes_mean"] <= 4.5
    assert told["over_per_tuning"] <= 0.4


def test_a_real_curve_goes_through_its_points_and_beyond() -> None:
    """Flat below the first, on lines between, on the last line beyond; nothing fits where size 1 does not."""
    one = next(m for m in real_curves.measured() if m.workload == "pna")
    curve = real_curves.task(one, 0.9)

    assert curve.peak(1) == one.points[0][1]
    assert all(curve.peak(int(size)) == amount for size, amount in one.points)
    assert curve.peak(8352) - curve.peak(8344) == one.points[-1][1] - one.points[-2][1]
    assert curve.ceiling == 4 * 8344
    assert (len(list(real_curves.tasks())), len(real_curves.measured())) == (140, 71)


def test_throughput_takes_a_fast_size_with_two_probes_more() -> None:
    """Within 2 % of the best speed on average; one workload, whose speed jumps to and fro, is not found."""
    columns = real_speeds.for_throughput(5)

    assert columns["speed_mean"] >= 0.98
    assert columns["speed_p5"] >= 0.94
    assert columns["more_probes_max"] <= 2


def test_a_right_guess_mostly_takes_one_probe() -> None:
    """Noise alone makes it more."""
    columns = guessed(1300, 0.01, 1.0)

    assert columns["share_of_one_probe"] >= 0.75
    assert columns["probes_mean"] <= 1.3


@pytest.mark.parametrize(("noise", "share"), [(0.0005, 0.98), (0.001, 0.94)])
def test_a_tuning_repeats_itself(noise: float, share: float) -> None:
    """Optima of 150..350: at 0.05 % noise the same to one sample; told as a guess, the same."""
    columns = repeated(10, noise)

    assert columns["share_within_1_of_the_median"] >= share
    assert columns["share_the_same_when_told_as_guess"] >= 0.99


def peer(optimum: int, ceiling: int) -> Device:
    """A card without noise whose largest size is the optimum."""
    curve = Curve(
        family="affine", ceiling=ceiling, fixed=0, growing=lambda size: 1.0, limit=optimum
    )
    return Device(curve, Random(0), noise=0.0)


def test_the_peers_do_what_their_sources_say() -> None:
    """The sizes that each tries for a largest size of 600, worked out by hand."""
    assert accelerate(device := peer(600, 1024)) == 542
    assert device.sizes == [1024, 921, 828, 745, 670, 603, 542]
    assert lightning_power(peer(600, 4096)) == 512
    assert lightning_power(device := peer(600, 1000)) == 1024
    assert max(device.sizes) == 512
    assert lightning_binsearch(peer(600, 4096)) == int(600 * 0.95)
    assert nemo(device := peer(600, 4096)) == 592
    assert device.sizes == [32, 64, 128, 256, 512, 1024, 768, 640, 576, 608, 592]
    assert bisection(peer(600, 4096)) == 600


@pytest.mark.parametrize("name", ALGORITHMS)
def test_where_nothing_runs_each_gives_up(name: str) -> None:
    """All but Lightning's binsearch, which returns 1 without having run it."""
    answer = ALGORITHMS[name](peer(0, 1024))

    assert answer == (1 if name == "Lightning binsearch" else None)


def test_the_committed_figures_are_of_this_search(
    tunings: list[Tuning], on_real: dict[str, float]
) -> None:
    """`bench/results` is made anew when the search changes; the same seed gives the same."""
    document = json.loads(RESULTS.read_text())

    columns = summary(tunings)

    assert document["curves"] == len(tunings)
    assert document["algorithms"]["chatlm"]["all"] == pytest.approx(columns, abs=0.005)
    assert document["real_cards"]["algorithms"]["chatlm"] == pytest.approx(on_real, abs=0.005)


def test_the_table_has_a_row_for_each_search() -> None:
    """With the figures over all families."""
    rows = table(json.loads(RESULTS.read_text())).splitlines()

    assert [row.split(" | ")[0] for row in rows[2:]] == [f"| {name}" for name in ALGORITHMS]
    assert len({row.count("|") for row in rows}) == 1
