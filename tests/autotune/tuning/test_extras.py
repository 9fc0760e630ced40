"""How many loader processes are worth their memory."""

from collections.abc import Callable

import pytest

from autotune.tuning.extras import fewest
from autotune.tuning.prober import DataWait


def waits(by_loaders: dict[int, float]) -> Callable[[int], DataWait | None]:
    """Measured waits; a number of loaders that is missing does not survive it."""

    def measure(loaders: int) -> DataWait | None:
        seconds = by_loaders.get(loaders)
        return None if seconds is None else DataWait(seconds=seconds, host_peak=loaders)

    return measure


@pytest.mark.parametrize(
    ("by_loaders", "most", "room", "taken"),
    [
        ({0: 0.019}, 8, 100, 0),  # 2 % of a step is not worth a process
        ({0: 0.5, 1: 0.2, 2: 0.01, 4: 0.0}, 8, 100, 2),  # twice as many wait no less
        ({0: 0.5, 1: 0.2, 2: 0.2, 4: 0.19, 8: 0.19}, 8, 99, 1),  # the disk is the limit
        ({0: 0.5, 1: 0.3, 2: 0.0}, 1, 100, 1),
        ({0: 0.5, 1: 0.3, 2: 0.0}, 8, 1, 1),
        ({0: 0.5, 1: 0.2}, 8, 100, 1),  # a loader that dies takes its training along
        ({}, 8, 100, None),
    ],
    ids=["none", "keep up", "gain nothing", "cores", "host memory", "die", "all die"],
)
def test_the_fewest_loaders_that_keep_up_are_taken(
    by_loaders: dict[int, float], most: int, room: int, taken: int | None
) -> None:
    """Within cores and host memory; more that gain nothing, or do not survive, are not taken."""
    assert fewest(waits(by_loaders), busy=1.0, most=most, room=room) == taken
