"""A micro-batch for each rank: the largest that its own card holds, found together."""

import math

from hypothesis import example, given, settings
from hypothesis import strategies as st

from autotune.cause import Cause, Failure
from autotune.readings import DeviceBudget, Measured
from autotune.search import Search
from autotune.trial import Trial, with_verdict
from autotune.tuning.per_device import Sizes, ask_each
from autotune.verdict import Verdict

MIB = 2**20
CARDS = st.lists(
    st.tuples(st.integers(500, 4000), st.integers(0, 400), st.integers(1, 90)),
    min_size=2,
    max_size=4,
)
"""Of each card the budget, what is resident, and what a sequence takes; MiB."""

Card = tuple[int, int, int]


def budgets(group: list[Card]) -> tuple[DeviceBudget, ...]:
    return tuple(
        DeviceBudget(device=str(i), name=str(i), total=9000 * MIB, others=0, budget=budget * MIB)
        for i, (budget, _, _) in enumerate(group)
    )


def run(sizes: Sizes, group: list[Card], *, full: int = 10**9) -> Trial:
    """As a prober would say it; a card that would hold `full` MiB is out of memory."""
    peaks = [
        (fixed + size * each) * MIB for size, (_, fixed, each) in zip(sizes, group, strict=True)
    ]
    trial = Trial(
        size=max(sizes), sizes=sizes, verdict=Verdict.FITS, peak=None, seconds=1.0,
        measured=tuple(
            Measured(peak=peak, static_bytes=fixed * MIB, activation_peak=peak)
            for peak, (_, fixed, _) in zip(peaks, group, strict=True)
        ),
    )  # fmt: skip
    if max(peaks) > full * MIB:
        return Trial(
            size=max(sizes), sizes=sizes, verdict=Verdict.OOM, peak=None, seconds=1.0,
            budgets=budgets(group), failure=Failure(cause=Cause.DEVICE_OOM, rank=peaks.index(max(peaks))),
        )  # fmt: skip
    return with_verdict(trial, budgets(group))


def search(
    group: list[Card], *, ceiling: int, most: int | None = None, full: int = 10**9
) -> list[Trial]:
    trials: list[Trial] = []
    while (sizes := ask_each(trials, budgets(group), Search(ceiling, 0), most=most)) is not None:
        trials.append(run(sizes, group, full=full))
        assert len(trials) <= (2 * math.log2(ceiling) + 3) * len(group)
    return trials


def answer(trials: list[Trial]) -> Trial | None:
    fits = [trial for trial in trials if trial.verdict is Verdict.FITS]
    return max(fits, key=lambda trial: trial.sequences, default=None)


@settings(max_examples=300)
@given(CARDS, st.integers(1, 300))
def test_each_card_gets_nearly_the_most_that_it_holds(group: list[Card], ceiling: int) -> None:
    """Sizes that ran together, and fitted on all of them."""
    largest = [min(ceiling, (budget - fixed) // each) for budget, fixed, each in group]

    found = answer(search(group, ceiling=ceiling))

    if min(largest) < 1:
        assert found is None
    else:
        assert found is not None
        assert all(
            0.9 * most - 1 <= size <= most for size, most in zip(found.sizes, largest, strict=True)
        )


@given(CARDS, st.integers(4, 60))
@example([(500, 0, 1), (500, 0, 1), (500, 345, 90), (500, 345, 90)], 5)
def test_together_they_are_no_more_than_the_effective_batch(group: list[Card], most: int) -> None:
    """The user's own choice stands."""
    trials = search(group, ceiling=most, most=most)

    assert all(sum(trial.sizes) <= most for trial in trials)


def test_a_card_out_of_memory_says_nothing_about_the_others() -> None:
    """The small one runs out; the large one goes on from where it was."""
    group = [(4000, 100, 10), (1000, 100, 10)]

    trials = search(group, ceiling=4096, full=1001)
    found = answer(trials)

    assert found is not None
    assert found.sizes[1] <= 90
    assert any(trial.verdict is Verdict.OOM for trial in trials)


def test_an_earlier_answer_is_asked_first() -> None:
    """All ranks at once."""
    group = [(1000, 100, 10), (500, 100, 10)]

    assert ask_each([], budgets(group), Search(99, 0), most=None, guess=(80, 39)) == (80, 39)
