"""Trials as the search is told them, and the one that is chosen."""

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.cause import Cause, Failure
from autotune.choices import Prefer
from autotune.readings import DeviceBudget, Measured
from autotune.search import AIM, Search
from autotune.trial import Trial, choose, reevaluate, undecided, with_margins, with_verdict
from autotune.tuning.loop import SPEED_PROBES, Extras, Outcome, beside_the_fastest, tell, tune
from autotune.verdict import Verdict

MIB = 2**20


def device(name: str, budget: int) -> DeviceBudget:
    return DeviceBudget(device=name, name=name, total=8192 * MIB, others=0, budget=budget)


def trial(size: int, verdict: Verdict = Verdict.FITS, speed: float | None = None) -> Trial:
    return Trial(size=size, verdict=verdict, peak=size, seconds=1.0, samples_per_second=speed)


def run(size: int, group: list[tuple[DeviceBudget, int, int]]) -> Trial:
    """The trial of a size on cards that hold `fixed + size × per_size`, as a prober would say it."""
    peaks = [(fixed + size * per_size, fixed) for _, fixed, per_size in group]
    measured = tuple(Measured(peak=p, static_bytes=s, activation_peak=p) for p, s in peaks)
    return with_verdict(replace(trial(size), measured=measured), [budget for budget, _, _ in group])


BUDGETS, FIXED, PER_SIZE = (500 * MIB, 4000 * MIB), (0, 600 * MIB), (MIB, 100 * MIB)
CARDS = st.tuples(st.integers(*BUDGETS), st.integers(*FIXED), st.integers(*PER_SIZE))


def found(shapes: list[tuple[int, int, int]], ceiling: int) -> tuple[int, int, int]:
    """The answer on such cards, or 0; the largest size within the aim, and the largest that fits."""
    group = [(device(str(i), b), fixed, per_size) for i, (b, fixed, per_size) in enumerate(shapes)]
    search = Search(ceiling, min(budget.budget for budget, _, _ in group))

    while (size := search.ask()) is not None:
        search = tell(search, run(size, group))

    largest = min(
        ceiling, *((budget.budget - fixed) // per_size for budget, fixed, per_size in group)
    )
    aimed = min(
        ceiling,
        *(
            (budget.budget - int((1 - AIM) * search.budget) - fixed) // per_size
            for budget, fixed, per_size in group
        ),
    )
    return search.low, aimed, largest


@given(st.lists(CARDS, min_size=1, max_size=4), st.integers(1, 500))
def test_the_tightest_device_decides(shapes: list[tuple[int, int, int]], ceiling: int) -> None:
    """Whichever it is at which size, the answer fits on all, and twice as much would not.

    Where the tightest is another one at the next probe, the line through both ends too early.
    """
    answer, aimed, largest = found(shapes, ceiling)

    assert int(0.5 * aimed) <= answer <= max(0, largest)


def test_the_tightest_device_is_mostly_used_up() -> None:
    """On 99 of 100 nodes of cards that differ in everything, to 5 %."""
    random = Random(0)
    nodes = [
        [(random.randint(*BUDGETS), random.randint(*FIXED), random.randint(*PER_SIZE))
         for _ in range(random.randint(2, 4))]
        for _ in range(1000)
    ]  # fmt: skip

    near = [answer >= int(0.95 * aimed) for answer, aimed, _ in (found(n, 500) for n in nodes)]

    assert sum(near) >= 0.99 * len(nodes)


class Noisy:
    """A card of 1,000 MiB of which a sequence takes 10; equal steps differ by `spread`, and it reads low."""

    target, noise, is_rough = 1.0, 0.003, False

    def __init__(self, spread: int) -> None:
        self.budgets = (device("card", 1000 * MIB),)
        self.spread = spread

    def open(self) -> dict[str, Any]:
        return {"model": "m"}

    def probe(self, size: int | tuple[int, ...]) -> Trial:
        assert isinstance(size, int)
        measured = Measured(
            peak=10 * MIB * size, static_bytes=0, activation_peak=10 * MIB * size,
            spread=self.spread if size > 50 else 0,
        )  # fmt: skip
        return with_verdict(replace(trial(size), measured=(measured,)), self.budgets)


@given(st.integers(0, 50 * MIB))
def test_an_answer_leaves_the_noise_that_its_tuning_measured(spread: int) -> None:
    """Twice as much as equal steps differed by, whichever probe showed it."""
    ended: list[Any] = []

    outcome = tune(Noisy(spread), ceiling=lambda info: 500, emit=ended.append)

    assert outcome.answer is not None
    assert outcome.answer.peak is not None
    left = 1000 * MIB - outcome.answer.peak
    assert 2 * spread <= left <= 2 * spread + 40 * MIB
    assert outcome.answer.budgets[0].margin == 2 * spread


def test_a_size_within_the_noise_of_the_budget_says_so() -> None:
    prober = Noisy(5 * MIB)
    trials = [prober.probe(100)]

    (over,) = (reevaluate(t, with_margins(prober.budgets, trials)) for t in trials)

    assert over is not None
    assert over.verdict is Verdict.OVER
    assert over.reason == "leaves less than the margin for noise, 10 MiB"
    assert trials[0].verdict is Verdict.FITS
    assert trials[0].reason is None


def test_a_device_is_told_by_its_headroom() -> None:
    """A larger card with as much left over is as far from its end as a smaller one."""
    budgets = (device("small", 1000), device("large", 5000))
    on_large = replace(
        trial(4), peak=4700, static_bytes=4100, activation_peak=4600, budgets=budgets, tightest=1
    )

    told = tell(Search(64, 1000), on_large).observations[-1]

    assert (told.peak, told.static_bytes, told.activation_peak) == (700, 100, 600)


def test_a_trial_without_a_peak_is_told_without_one() -> None:
    """Out of memory has no figure."""
    failed = replace(trial(4, Verdict.OOM), peak=None, budgets=(device("card", 1000),))

    search = tell(Search(64, 1000), failed)

    assert (search.observations[-1].peak, search.high) == (None, 4)


@pytest.mark.parametrize(("prefer", "size"), [("memory", 17), ("throughput", 8)])
def test_the_largest_or_the_smallest_that_is_as_fast_as_any_is_chosen(
    prefer: Prefer, size: int
) -> None:
    """In whatever order they were tried. 3 % slower is as fast; one that is over is no yardstick."""
    trials = [
        trial(8, speed=98.0), trial(4, speed=90.0), trial(32, Verdict.OVER, speed=200.0),
        trial(17, speed=2.0), trial(16, speed=100.0), trial(1),
    ]  # fmt: skip

    chosen = choose(trials, prefer)

    assert chosen is not None
    assert chosen.size == size


@pytest.mark.parametrize("prefer", ["memory", "throughput"])
def test_where_nothing_fits_nothing_is_chosen(prefer: Prefer) -> None:
    """Neither of what ran over, nor of nothing."""
    assert choose([trial(1, Verdict.OVER, speed=1.0)], prefer) is None
    assert choose([], prefer) is None


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (Failure(cause=Cause.HARD_LIMIT, device="A", held=700 * MIB, limit=600 * MIB), "nothing fits: micro-batch 1 ran "
         "out of memory (stopped at 700 MiB on A, past the hard limit of 600 MiB), and the budget of A is 500 MiB, "
         "with 0 B of 8.00 GiB held by others; a smaller model"),
        (Failure(cause=Cause.HOST_TARGET, held=900 * MIB, limit=800 * MIB), "nothing fits: micro-batch 1: host memory: "
         "900 MiB in use, 800 MiB allowed; more RAM"),
    ],
    ids=["device", "host"],
)  # fmt: skip
def test_what_did_not_fit_is_told_with_its_figures_and_its_cure(
    failure: Failure, said: str
) -> None:
    """Host memory is not cured by a larger share of the device."""
    smallest = Trial(
        size=1, verdict=Verdict.OVER, peak=None, seconds=1.0, budgets=(device("A", 500 * MIB),),
        failure=failure,
    )  # fmt: skip
    outcome = Outcome(
        answer=None, trials=(smallest,), workload_info={}, interrupted=False, seconds=1.0,
        extras=Extras(),
    )  # fmt: skip

    assert str(outcome.nothing_fits("a smaller model", "more RAM")) == said


@dataclass
class Timer:
    """A prober on a card that holds so many sequences, whose probes show these speeds and spreads in turn."""

    speeds: dict[int, list[tuple[float, float]]]
    """By size, the last one for ever; other sizes take a second."""
    most: int
    target: float = 0.9
    noise: float = 0.01
    is_rough: bool = False
    asked: list[int] = field(default_factory=list)

    @property
    def budgets(self) -> tuple[DeviceBudget, ...]:
        return (device("card", (self.most + 1) * 10 * MIB - 1),)

    def open(self) -> dict[str, Any]:
        return {"model": "timed"}

    def probe(self, size: int | tuple[int, ...]) -> Trial:
        assert isinstance(size, int)
        self.asked.append(size)
        said = self.speeds.get(size, [(float(size), 0.0)])
        speed, spread = said.pop(0) if len(said) > 1 else said[0]
        timed = replace(run(size, [(self.budgets[0], 0, 10 * MIB)]), sizes=(size,))
        return replace(timed, samples_per_second=speed, speed_spread=spread)


def timed(timer: Timer) -> Trial:
    """The answer for throughput."""
    answer = tune(
        timer, ceiling=lambda info: 64, prefer="throughput", emit=lambda event: None
    ).answer
    assert answer is not None
    return answer


def test_a_speed_that_cannot_decide_is_measured_again() -> None:
    """Twice as fast at 64, or as slow: the spread does not tell, and the second time it is steady."""
    timer = Timer({1: [(1.0, 0.0)], 64: [(60.0, 0.9), (20.0, 0.01)]}, most=64)
    for size in range(2, 64):
        timer.speeds[size] = [(40.0, 0.01)]

    answer = timed(timer)

    assert timer.asked.count(64) == 2
    assert answer.samples_per_second == 40.0
    assert len(timer.asked) <= len(set(timer.asked)) + 1


def test_a_spread_that_changes_nothing_is_not_measured_again() -> None:
    """However widely a slow size spreads, it is not the fastest."""
    timer = Timer({1: [(1.0, 0.5)], 64: [(60.0, 0.01)]}, most=64)

    timed(timer)

    assert len(timer.asked) == len(set(timer.asked))


def test_a_size_between_is_found_where_the_largest_is_slower() -> None:
    """Speeds that fall again: the fastest lies below the largest, and two probes more look for it."""
    falling = {size: [(100.0 - abs(size - 24), 0.01)] for size in range(1, 65)}
    timer, plain = Timer(falling, most=64), Timer(falling, most=64)
    tune(plain, ceiling=lambda info: 64, emit=lambda event: None)

    answer = timed(timer)

    assert answer.samples_per_second is not None
    assert answer.samples_per_second >= 95.0
    assert len(timer.asked) - len(plain.asked) <= SPEED_PROBES


def test_a_size_that_did_not_fit_the_second_time_is_not_chosen() -> None:
    """It was measured again for its speed, and its peak passed the budget."""
    again = [trial(8, speed=50.0), trial(16, speed=90.0), trial(16, Verdict.OVER, speed=95.0)]

    chosen = choose(again, "throughput")

    assert chosen is not None
    assert chosen.size == 8
    assert undecided([*again, trial(9, speed=49.0)]) is None


def test_a_size_that_failed_beside_a_tenant_is_chosen_once_it_fits() -> None:
    """The tenant left, and the size was probed again."""
    chosen = choose([trial(8), trial(16, Verdict.OVER), trial(16)], "memory")

    assert chosen is not None
    assert chosen.size == 16


def test_on_several_devices_a_size_beside_the_fastest_is_one_devices_own() -> None:
    """Not the sum over the devices, which would be out of bounds."""
    pair = [replace(trial(n, speed=speed), sizes=(n, n)) for n, speed in ((8, 50.0), (16, 100.0))]

    assert beside_the_fastest(pair) == 11
