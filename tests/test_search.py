"""The search over thousands of made-up curves: what it returns ran and fitted, and it ends soon."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from autotune.search import FINE, Search
from autotune.verdict import Verdict

BUDGET = 10_000_000_000
CARD = 16_700_000_000


@dataclass
class Device:
    """A device with a known curve: bytes at a size, noise included; out of memory above the card."""

    curve: Callable[[int], float]
    fixed: int
    floor: float = 0.0
    asked: list[int] = field(default_factory=list)
    fitted: list[int] = field(default_factory=list)

    def tell(self, search: Search, size: int) -> Search:
        self.asked.append(size)
        growing = int(self.curve(size))
        peak = int(max(growing, self.floor))
        if peak > CARD:
            return search.tell(size, Verdict.OOM)
        if peak > search.budget:
            return search.tell(size, Verdict.OVER, peak, self.fixed, growing)
        self.fitted.append(size)
        return search.tell(size, Verdict.FITS, peak, self.fixed, growing)


def run(device: Device, ceiling: int, guess: int | None = None) -> Search:
    search = Search(ceiling, BUDGET, guess)
    while (size := search.ask()) is not None:
        search = device.tell(search, size)
        assert len(device.asked) <= 2 * math.log2(ceiling) + 2, device.asked
    return search


@st.composite
def devices(draw: st.DrawFn) -> Device:
    """Affine, concave, convex and flat-started curves, noisy, that end anywhere or never."""
    fixed = draw(st.integers(0, int(1.2 * BUDGET)))
    optimum = math.exp(draw(st.floats(-0.7, math.log(6000))))
    power = draw(st.sampled_from([1.0, 0.8, 1.2]))
    floor = draw(st.sampled_from([0.0, 0.3, 0.7])) * BUDGET
    noise = draw(st.sampled_from([0.0, 0.005, 0.01]))
    seed = draw(st.integers(0, 2**32))
    slope = abs(BUDGET - fixed) + 1

    def curve(size: int) -> float:
        wobble = math.sin(seed + 7919 * size)  # in -1..1, the same at every call
        return float((fixed + slope * (size / optimum) ** power) * (1 + noise * wobble))

    return Device(curve, fixed, floor)


@given(devices(), st.integers(1, 4096), st.none() | st.integers(1, 5000))
def test_the_answer_is_a_size_that_ran_and_fitted(
    device: Device, ceiling: int, guess: int | None
) -> None:
    """Never a size that was only computed, and none at all when nothing fitted."""
    search = run(device, ceiling, guess)

    assert search.answer == max(device.fitted, default=None)


@given(devices(), st.integers(1, 4096), st.none() | st.integers(1, 5000))
def test_no_size_is_asked_twice_or_beyond_the_ceiling(
    device: Device, ceiling: int, guess: int | None
) -> None:
    """Every probe is worth its time."""
    run(device, ceiling, guess)

    assert len(set(device.asked)) == len(device.asked)
    assert all(1 <= size <= ceiling for size in device.asked)


@given(devices(), st.integers(1, 4096))
def test_the_bracket_is_closed_at_the_end(device: Device, ceiling: int) -> None:
    """The next larger size that was tried failed, within 1/64; or there is no larger size."""
    search = run(device, ceiling)

    assert search.low == ceiling or search.high - search.low <= max(1, search.low // FINE)
    assert search.high == ceiling + 1 or search.high in device.asked


def test_an_affine_curve_takes_few_probes() -> None:
    """1, a careful guess, the end of the budget and one beyond it."""
    device = Device(lambda size: 2e9 + 79_600_000 * size, fixed=2_000_000_000)

    search = run(device, 4096)

    assert search.answer == 100
    assert len(device.asked) <= 5


def test_a_good_guess_takes_two_probes() -> None:
    """A size from an earlier tuning is confirmed, and the next one refuted."""
    device = Device(lambda size: 2e9 + 79_600_000 * size, fixed=2_000_000_000)

    search = run(device, 4096, guess=100)

    assert device.asked == [100, 101]
    assert search.answer == 100


def test_nothing_fits_is_known_after_one_probe() -> None:
    """Size 1 is the smallest there is."""
    device = Device(lambda size: 1.1 * BUDGET, fixed=2_000_000_000)

    search = run(device, 4096)

    assert search.answer is None
    assert device.asked == [1]


def test_a_flat_start_is_not_extrapolated() -> None:
    """The optimizer's floor hides the slope in `peak`; `growing` shows it."""
    device = Device(lambda size: 1e9 + 200_000_000 * size, fixed=1_000_000_000, floor=6e9)

    search = run(device, 4096)

    assert search.answer == 45
    assert max(device.asked) <= 60


def test_a_wrong_fit_still_ends_in_the_right_answer() -> None:
    """A cliff that no fit foresees is found by the bracket."""
    device = Device(lambda size: 2e9 + 1_000_000 * size if size < 700 else 2 * CARD, fixed=0)

    search = run(device, 4096)

    assert search.answer is not None
    assert 689 <= search.answer <= 699
