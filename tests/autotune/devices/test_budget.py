"""Where a probe is stopped."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.cause import Cause, Failure
from autotune.devices.budget import (
    HARD_LIMIT_MARGIN,
    HOST_FLOOR,
    budgets,
    device_breach,
    host_breach,
)
from autotune.readings import DeviceBudget, DeviceReading, HostReading

GIB = 2**30
TOTALS = st.integers(GIB, 200 * GIB)
SHARES = st.floats(0.01, 1.0)


@given(TOTALS, SHARES, st.floats(0, 0.99))
def test_the_hard_limit_lies_between_the_budget_and_what_is_left(
    total: int, target: float, held: float
) -> None:
    """A small margin above the target; others' memory is never part of it."""
    used = int(held * target * total)
    card = DeviceReading(device="a", name="A", total=total, used=used)

    (limit,) = (device.hard_limit for device in budgets([card], target))

    assert limit is not None
    assert int(target * total) - used <= limit <= total - used
    assert limit <= int((target + HARD_LIMIT_MARGIN) * total) - used


def test_the_device_that_is_past_its_limit_is_named() -> None:
    """With the figures, others' share not counted."""
    small = DeviceBudget(
        device="a", name="A", total=8 * GIB, others=GIB, budget=2 * GIB, hard_limit=3 * GIB
    )
    large = DeviceBudget(
        device="b", name="B", total=8 * GIB, others=0, budget=6 * GIB, hard_limit=7 * GIB
    )

    assert device_breach([small, large], [4 * GIB, 7 * GIB]) is None
    assert device_breach([small, large], [4 * GIB, 8 * GIB]) == (
        1, Failure(cause=Cause.HARD_LIMIT, device="B", held=8 * GIB, limit=7 * GIB)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("hard_limit", "early"), [(None, False), (5 * GIB, True), (6 * GIB, False)]
)
def test_a_limit_of_ours_counts_where_the_device_still_has_more(
    hard_limit: int | None, early: bool
) -> None:
    """At the same amount the device itself says no."""
    device = DeviceBudget(
        device="a", name="A", total=8 * GIB, others=2 * GIB, budget=4 * GIB, hard_limit=hard_limit
    )

    assert device.stops_early is early


def host(used: float) -> HostReading:
    return HostReading(total=100 * GIB, used=int(used * 100 * GIB))


def test_the_host_keeps_a_floor_whatever_the_target() -> None:
    """The kernel would choose a victim itself."""
    breach = host_breach(host(1 - HOST_FLOOR), 1.0)

    assert breach is not None
    assert breach.cause is Cause.HOST_OOM


def test_past_the_share_of_host_memory_and_a_margin_a_probe_is_over() -> None:
    """Up to the margin it may run to its end, and tell."""
    assert host_breach(host(0.84), 0.8) is None
    assert host_breach(host(0.86), 0.8) == Failure(
        cause=Cause.HOST_TARGET, held=86 * GIB, limit=80 * GIB
    )
