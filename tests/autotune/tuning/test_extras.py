"""How many loader processes are worth their memory."""

from collections.abc import Callable

import pytest

from autotune.tuning.extras import fewest
from autotune.tuning.prober import DataWait


def waits(by_loaders: dict[int, float], each: int = 1) -> Callable[[int], DataWait | None]:
    """Measured waits; a number of loaders that is missing does not survive it."""

    def measure(loaders: int) -> DataWait | None:
        seconds = by_loaders.get(loaders)
        return None if seconds is None else DataWait(seconds=seconds, host_peak=loaders * each)

    return measure


def test_where_data_are_ready_at_once_no_process_is_started() -> None:
    """2 % of a step is not worth one."""
    assert fewest(waits({0: 0.019}), busy=1.0, most=8, room=100) == 0


def test_the_fewest_that_keep_up_are_taken() -> None:
    """Twice as many wait no less."""
    assert fewest(waits({0: 0.5, 1: 0.2, 2: 0.01, 4: 0.0}), busy=1.0, most=8, room=100) == 2


def test_more_that_gain_nothing_are_not_taken() -> None:
    """The disk is the limit, not the processors."""
    assert fewest(waits({0: 0.5, 1: 0.2, 2: 0.2, 4: 0.19, 8: 0.19}), busy=1.0, most=8, room=99) == 1


@pytest.mark.parametrize(("most", "room"), [(1, 100), (8, 1)], ids=["cores", "memory"])
def test_cores_and_host_memory_bound_them(most: int, room: int) -> None:
    """Whatever it would gain."""
    assert fewest(waits({0: 0.5, 1: 0.3, 2: 0.0}), busy=1.0, most=most, room=room) == 1


def test_what_does_not_survive_is_not_taken() -> None:
    """A loader that dies takes its training along."""
    assert fewest(waits({0: 0.5, 1: 0.2}), busy=1.0, most=8, room=100) == 1
    assert fewest(waits({}), busy=1.0, most=8, room=100) is None
