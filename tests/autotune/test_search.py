"""The search over thousands of made-up curves: what it returns ran and fitted, and it ends soon."""

import math
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.devices.group import EmulatedDevices, GpuDevices
from autotune.search import AIM, MIN_GAIN, Observation, Search
from autotune.verdict import Verdict
from bench.made_up_curves import SHAPES, make
from bench.search_algorithms import ours
from bench.simulated_device import BUDGET, CARD, Curve, Device

GB = 10**9


def line(fixed: float, slope: float, ceiling: int = 4096, floor: float = 0.0) -> Device:
    """A device without noise whose peaks lie on a line; shares of the budget."""
    curve = Curve(
        family="affine",
        ceiling=ceiling,
        fixed=int(fixed * BUDGET),
        growing=lambda size: (fixed + slope * size) * BUDGET,
        floor=floor * BUDGET,
    )
    return Device(curve, Random(0), noise=0.0)


@st.composite
def devices(draw: st.DrawFn, family: str) -> Device:
    """A curve of the family under any ceiling, with any noise up to 1 %."""
    random = Random(draw(st.integers(0, 2**32)))
    curve = make(family, random, draw(st.floats(0, 1)))
    curve = replace(curve, ceiling=draw(st.integers(1, 4096)))
    return Device(curve, random, draw(st.sampled_from([0.0, 0.002, 0.01])))


@pytest.mark.parametrize("family", SHAPES)
@settings(max_examples=200, deadline=None)
@given(st.data(), st.none() | st.integers(1, 5000))
def test_whatever_the_curve(family: str, data: st.DataObject, guess: int | None) -> None:
    """The answer ran and fitted, no size is asked twice or beyond the ceiling, and it ends soon."""
    device = data.draw(devices(family))
    ceiling = device.curve.ceiling
    search = Search(ceiling, BUDGET, guess)

    while (size := search.ask()) is not None:
        search = device.probe(search, size)
        assert len(device.sizes) <= 2 * math.log2(ceiling) + 2, device.sizes

    fitted = [told.size for told in search.observations if told.verdict is Verdict.FITS]
    assert search.answer == max(fitted, default=None)
    assert search.answer is not None or 1 in device.sizes
    assert len(set(device.sizes)) == len(device.sizes)
    assert all(1 <= size <= ceiling for size in device.sizes)


bytes_told = st.none() | st.integers(0, int(2 * CARD))
told = st.builds(
    Observation,
    size=st.integers(1, 300),
    verdict=st.sampled_from(Verdict),
    peak=bytes_told,
    static_bytes=bytes_told,
    activation_peak=bytes_told,
)


@settings(max_examples=500, deadline=None)
@given(st.lists(told, max_size=12), st.integers(1, 300), st.data())
def test_any_history_is_taken_up(
    history: list[Observation], ceiling: int, data: st.DataObject
) -> None:
    """Told out of order, by another budget, or nonsense: it ends, and asks only for new sizes."""
    search = Search(ceiling, BUDGET, observations=tuple(t for t in history if t.size <= ceiling))

    while (size := search.ask()) is not None:
        assert search.low < size < search.high
        assert size not in {t.size for t in search.observations}
        more = data.draw(told)
        search = search.tell(size, more.verdict, more.peak, more.static_bytes, more.activation_peak)

    assert len(search.observations) <= len(history) + 2 * math.log2(ceiling) + 2


@given(st.integers(2, 3000), st.floats(0.05, 0.6))
def test_an_affine_curve_needs_no_failing_probe(optimum: int, fixed: float) -> None:
    """1, a careful leap or two, and the end of the budget or what is worth no probe short of it."""
    device = line(fixed, (1 - fixed) / (optimum + 0.5))

    answer = ours(device)

    aimed = device.curve.largest(AIM * BUDGET)
    assert answer is not None
    assert aimed / (1 + MIN_GAIN[2]) - 1 <= answer <= optimum
    assert len(device.sizes) <= 5
    assert device.over + device.oom == 0


@given(st.integers(1, 3000), st.floats(0.05, 0.6))
def test_a_right_guess_takes_one_probe(optimum: int, fixed: float) -> None:
    """The answer of an earlier tuning is taken again when it comes as close to the aim."""
    device = line(fixed, (AIM - fixed) / optimum)

    answer = ours(device, guess=optimum)

    assert device.sizes == [optimum]
    assert answer == optimum


@pytest.mark.parametrize(
    ("guess", "most"), [(40, 5), (90, 5), (110, 5), (150, 5), (400, 5), (4000, 6)]
)
def test_a_wrong_guess_is_mended_soon(guess: int, most: int) -> None:
    """Too small, too large, or far out of memory."""
    device = line(0.3, 0.7 / 100.5)

    answer = ours(device, guess)

    assert answer in (98, 99, 100)
    assert len(device.sizes) <= most


def test_nothing_fits_is_known_after_one_probe() -> None:
    """Size 1 is the smallest there is."""
    device = line(0.3, 0.8)

    answer = ours(device)

    assert answer is None
    assert device.sizes == [1]


def test_a_ceiling_that_fits_is_the_answer() -> None:
    """It ends there, with nothing left to try."""
    device = line(0.3, 0.001, ceiling=64)

    answer = ours(device)

    assert answer == 64


def test_a_flat_start_is_not_extrapolated() -> None:
    """The optimizer's floor hides the slope in `peak`; `activation_peak` shows it."""
    device = line(0.1, 0.02, floor=0.8)

    answer = ours(device)

    assert answer == 44
    assert max(device.sizes) <= 45


def test_floor_points_alone_end_no_search() -> None:
    """Where only the floor is seen, whatever it leaves of the budget, larger sizes are tried."""
    search = Search(64, 100 * GB)

    search = search.tell(1, Verdict.FITS, 90 * GB, 10 * GB)
    assert search.ask() == 2
    search = search.tell(2, Verdict.FITS, 90 * GB, 10 * GB)

    assert search.ask() == 6  # 9 GB of room, by 1.6 times what noise makes of a flat line


def test_most_of_the_first_whole_peak_is_static() -> None:
    """Untold, 70 % of it is; a static memory that is told to be more is believed."""
    search = Search(4096, 100 * GB)

    assert (
        search.tell(1, Verdict.FITS, 10 * GB).ask() == 29
    )  # 89 GB of room at 3 GB a sample, raised by the noise
    assert search.tell(1, Verdict.FITS, 10 * GB, 8 * GB).ask() == 42
    assert search.tell(1, Verdict.FITS, 10 * GB, 2 * GB, 10 * GB).ask() == 11


def test_sizes_on_the_floor_give_no_slope() -> None:
    """From a floor of 40 GB to 60 GB the line is that of the static memory, which ends earlier."""
    search = Search(4096, 100 * GB, noise=0.001)
    for size, peak in ((1, 40), (4, 40), (16, 60)):
        search = search.tell(size, Verdict.FITS, peak * GB, 30 * GB)

    assert (
        search.ask() == 36
    )  # 39 GB of room at 30 GB / 16, less 1.6 times the noise; by 20 GB / 12 it is 39


def test_a_bend_makes_the_next_step_careful() -> None:
    """The same last two points: the slope that was half of it before is not trusted to stay."""
    straight = Search(4096, 100 * GB, noise=0.001).tell(1, Verdict.FITS, 19 * GB)
    straight = straight.tell(11, Verdict.FITS, 30 * GB).tell(31, Verdict.FITS, 52 * GB)
    bent = Search(4096, 100 * GB, noise=0.001).tell(1, Verdict.FITS, 24 * GB)
    bent = bent.tell(11, Verdict.FITS, 30 * GB).tell(31, Verdict.FITS, 52 * GB)

    sizes = straight.ask(), bent.ask()

    assert sizes == (69, 61)


def test_a_size_that_was_over_by_little_is_followed_by_a_little_less() -> None:
    """Its whole peak is held against the budget, also where what grows with the size alone would fit."""
    search = Search(400, 1000, noise=0.002)
    search = search.tell(1, Verdict.FITS, 305, 300, 305)
    search = search.tell(80, Verdict.FITS, 590, 300, 580)

    search = search.tell(190, Verdict.OVER, 1001, 300, 985)
    asked = search.ask()

    assert asked is not None
    assert 184 <= asked < 190


def test_a_first_sample_that_costs_more_is_not_taken_for_the_slope() -> None:
    """By the first sample's price two would not fit: they are tried, and fit."""
    search = Search(64, 100 * GB).tell(1, Verdict.FITS, 70 * GB, 10 * GB, 70 * GB)

    assert search.ask() is None
    search = Search(64, 100 * GB).tell(1, Verdict.FITS, 60 * GB, 10 * GB, 60 * GB)

    assert search.ask() == 2


def test_a_probe_that_was_stopped_is_no_point_of_the_line() -> None:
    """What it had reached when it was stopped is not its peak: only its size counts."""
    search = Search(4096, 100 * GB).tell(10, Verdict.FITS, 30 * GB, 20 * GB, 30 * GB)

    stopped = search.tell(80, Verdict.OVER, None, 20 * GB)

    assert stopped.high == 80
    assert stopped.ask() == 79
    assert search.tell(70, Verdict.OVER, None, 20 * GB).ask() == 40


def test_a_cliff_is_found_by_halving() -> None:
    """A size limit that no peak foretells."""
    device = line(0.2, 0.0002)
    device.curve = replace(device.curve, limit=700)

    answer = ours(device)

    assert answer is not None
    assert 0.95 * 700 <= answer <= 700
    assert len(device.sizes) <= 10


def test_a_smaller_budget_takes_up_what_is_known() -> None:
    """A tenant took memory: the trials are told again, and one or two more probes suffice."""
    device = line(0.3, 0.7 / 1000.5)
    search = Search(4096, BUDGET)
    while (size := search.ask()) is not None:
        search = device.probe(search, size)
    smaller = replace(search, budget=int(0.8 * BUDGET), observations=())
    for t in search.observations:
        assert t.peak is not None
        verdict = Verdict.FITS if t.peak <= smaller.budget else Verdict.OVER
        smaller = smaller.tell(t.size, verdict, t.peak, t.static_bytes, t.activation_peak)

    before = len(smaller.observations)
    while (size := smaller.ask()) is not None:
        smaller = device.probe(smaller, size)

    assert smaller.answer is not None
    assert 0.97 * 714 <= smaller.answer <= 714
    assert len(smaller.observations) - before <= 2


def test_the_search_of_a_gpu_expects_rough_curves_though_it_is_told_all() -> None:
    """Kernels and workspaces change with the size whatever a probe tells; on a CPU they do not."""
    told = {"peak": 30 * GB, "fixed": 4 * GB, "growing": 30 * GB}
    gpu, cpu = (
        Search(4096, 100 * GB, noise=0.001, is_rough=is_rough)
        .tell(1, Verdict.FITS, 19 * GB, 4 * GB, 19 * GB)
        .tell(2, Verdict.FITS, **told)
        for is_rough in (True, False)
    )
    plain = (
        Search(4096, 100 * GB, noise=0.001)
        .tell(1, Verdict.FITS, 19 * GB, 4 * GB)
        .tell(2, Verdict.FITS, 30 * GB, 4 * GB)
    )

    assert gpu.ask() == plain.ask()
    assert gpu.ask() != cpu.ask()
    assert GpuDevices.is_rough
    assert not EmulatedDevices.is_rough
