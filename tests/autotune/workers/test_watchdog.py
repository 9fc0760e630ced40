"""Hung workers are told from workers that compute, in a probe and in training."""

import math

from autotune.workers.watchdog import MAX_SLOWDOWN, MIN_SILENCE, Watchdog


class Clock:
    """A clock that the test sets, and the CPU time of the workers."""

    def __init__(self) -> None:
        self.now = 0.0
        self.spent = 0.0

    def watchdog(self, longest: float = 100.0, idle: float = 15.0) -> Watchdog:
        return Watchdog(
            longest=longest, idle=idle, cpu_seconds=lambda: self.spent, clock=lambda: self.now
        )

    def turn(self, watchdog: Watchdog, seconds: int, load: float) -> list[str]:
        found = []
        for _ in range(seconds):
            self.now += 1.0
            self.spent += load
            if (failure := watchdog.check(heard=False)) is not None:
                found.append(str(failure))
        return found


def test_workers_that_do_nothing_are_hung_soon() -> None:
    """A worker that waits for a rank that never comes uses no CPU time."""
    clock = Clock()

    assert clock.turn(clock.watchdog(), 15, load=0.01) == []
    assert clock.turn(clock.watchdog(), 16, load=0.01) == ["did nothing for 15 s"]


def test_workers_that_compute_in_silence_are_not_hung_before_their_time() -> None:
    """A step of a large model on a few cores takes minutes."""
    clock = Clock()
    watchdog = clock.watchdog()

    assert clock.turn(watchdog, 100, load=1.0) == []
    assert clock.turn(watchdog, 1, load=1.0) == ["was silent for 100 s"]


def test_a_message_starts_both_limits_anew() -> None:
    """Each step sends one."""
    clock = Clock()
    watchdog = clock.watchdog()
    clock.turn(watchdog, 14, load=0.0)

    assert watchdog.check(heard=True) is None
    assert clock.turn(watchdog, 15, load=0.0) == []


def test_training_is_not_limited_before_its_first_step() -> None:
    """It may tokenise for hours, or wait for the user's answer."""
    clock = Clock()

    assert clock.turn(clock.watchdog(math.inf, math.inf), 10_000, load=0.0) == []


def test_slow_steps_raise_the_limit() -> None:
    """To a multiple of the slowest one so far, and never below the minimum."""
    watchdog = Clock().watchdog(math.inf, math.inf)

    watchdog.step(0.5)
    quick = watchdog.longest
    watchdog.step(60.0)
    watchdog.step(1.0)

    assert quick == MIN_SILENCE
    assert watchdog.longest == MAX_SLOWDOWN * 60.0
