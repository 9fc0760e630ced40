"""The learning rate is a function of the step's number alone."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.options import Schedule
from trainer.run.lr_schedule import rate_share

SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
STEPS = 100


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(steps=st.integers(1, 3000), warmup=st.floats(0, 0.9))
def test_the_rate_rises_to_its_peak_once_and_never_rises_again(
    schedule: Schedule, steps: int, warmup: float
) -> None:
    """And no step is wasted on a rate of zero."""
    shares = [rate_share(schedule, step, steps, warmup) for step in range(steps)]
    top = shares.index(max(shares))

    assert all(0 < share <= 1 for share in shares)
    assert shares[:top] == sorted(shares[:top])
    assert shares[top:] == sorted(shares[top:], reverse=True)


def test_all_schedules_warm_up_alike() -> None:
    """In a line over 20 of 100 steps."""
    risings = [[rate_share(s, step, STEPS, 0.2) for step in range(20)] for s in SCHEDULES]

    assert risings[0] == risings[1] == risings[2]
    assert risings[0] == pytest.approx([(step + 1) / 20 for step in range(20)])


@pytest.mark.parametrize(
    ("schedule", "middle", "last"),
    [("cosine", 0.5, 0.000386), ("linear", 0.5, 0.0125), ("constant", 1.0, 1.0)],
)
def test_a_schedule_falls_as_its_name_says(schedule: Schedule, middle: float, last: float) -> None:
    """Halfway between the end of a warm-up of 20 steps and the end, and at the last of 100 steps."""
    assert rate_share(schedule, 60, STEPS, 0.2) == pytest.approx(middle)
    assert rate_share(schedule, 99, STEPS, 0.2) == pytest.approx(last, rel=1e-2)


def test_a_short_warm_up_is_ten_steps() -> None:
    """Adam's first steps divide by what a single gradient happens to be; half of a shorter run."""
    assert rate_share("constant", 8, 1000, 0.0) == pytest.approx(0.9)
    assert rate_share("constant", 9, 1000, 0.0) == 1.0
    assert rate_share("constant", 1, 4, 0.0) == 1.0
