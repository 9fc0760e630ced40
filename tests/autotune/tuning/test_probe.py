"""What a worker counts over the steps of one probe, on a made-up allocator that caches."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from autotune.devices.allocator import DeviceMemory
from autotune.readings import Outside, Report
from autotune.tuning import probe
from autotune.tuning.probe import (
    LEAST_STEPS,
    MOST_STEPS,
    Load,
    measure,
    measure_evaluation,
    measure_memory_fractions,
)  # fmt: skip

MODEL = 100
SAMPLE = 10


class CachingMemory:
    """What was freed stays reserved until it is given back, as on a card."""

    device = "GPU-0"
    caches = True

    def __init__(self) -> None:
        self.reserved = self.highest = MODEL

    def take(self, amount: int) -> None:
        self.reserved = max(self.reserved, MODEL + amount)
        self.highest = max(self.highest, self.reserved)

    def release_cached(self) -> None:
        self.reserved = MODEL

    def reset_peak(self) -> None:
        self.highest = self.reserved

    def resident(self) -> int:
        return self.reserved

    def peak(self) -> int:
        return self.highest

    def allocated(self) -> int:
        return MODEL

    def peak_allocated(self) -> int:
        return self.highest

    def retries(self) -> int:
        return 0

    def synchronize(self) -> None:
        return

    def outside(self) -> Outside:
        return Outside()

    def limit(self, amount: int) -> Callable[[], None]:
        return self.synchronize


class Growing:
    """Each step takes `grows` bytes more than the one before it."""

    def __init__(self, grows: int = 0) -> None:
        self._memory = CachingMemory()
        self.memory: DeviceMemory = self._memory
        self.workload_info: Mapping[str, Any] = {}
        self.sides: tuple[float, float] | None = None
        self._grows = grows
        self._more = 0

    def forward_backward(self, size: int) -> Load:
        self._memory.take(SAMPLE * size + self._more)
        self._more += self._grows
        return Load(size, size)

    def mixed_lengths_step(self, size: int) -> None:
        self.forward_backward(size)

    def optimizer_step(self) -> None:
        return

    def evaluate(self, size: int) -> Load:
        self._memory.take(SAMPLE * size // 2)
        return Load(size, size)

    def data_wait(self, size: int, *, loaders: int, busy: float) -> tuple[float, int]:
        raise AssertionError("no probe waits")

    def dry_run(self, size: int, side: int | None) -> bool:
        if self.sides is not None:
            share = 1.0 if side is None else self.sides[side]
            self._memory.take(int(SAMPLE * size * share))
        return self.sides is not None

    def any_rank(self, claim: bool) -> bool:
        return claim


@pytest.fixture(autouse=True)
def speed_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "TIMED", 0.0)


def measured(workload: Growing, safe: int | None = None) -> tuple[Report, int]:
    """The report of a probe at 8, and how many steps it took."""
    steps: list[int] = []
    report = measure(workload, 8, steps.append, safe=safe)
    return report, len(steps)


def test_afterwards_nothing_stays_cached() -> None:
    """It would pass for a tenant's, and be the first thing that the next probe's meter sees."""
    trained, _ = measured(Growing())
    evaluated = measure_evaluation(Growing(), 8, lambda step: None)

    assert trained.peak == MODEL + 8 * SAMPLE
    assert evaluated.peak == MODEL + 4 * SAMPLE
    for report in (trained, evaluated):
        assert report.resident == report.static_bytes == MODEL


def test_what_grows_with_the_size_is_read_before_anything_is_left_in_pieces() -> None:
    """Later steps peak higher, and no two probes alike: a line through the first is the truer one."""
    report, _ = measured(Growing(10))

    assert report.activation_peak == MODEL + 8 * SAMPLE
    assert report.peak == report.activation_peak + 10 * (MOST_STEPS - 1)


@pytest.mark.parametrize(
    ("grows", "safe", "steps"),
    [
        (0, None, LEAST_STEPS + 2),
        (0, 10**6, LEAST_STEPS + 1),
        (10, None, MOST_STEPS),
        (10, 10**6, LEAST_STEPS + 1),
        (10, 1, MOST_STEPS),
    ],
    ids=["settled", "far below the budget", "grows", "grows far below the budget", "grows near it"],
)
def test_steps_go_on_until_the_peak_has_settled(grows: int, safe: int | None, steps: int) -> None:
    """Unless it fits however it wavers."""
    _, taken = measured(Growing(grows), safe)

    assert taken == steps


def test_without_a_cache_the_mix_comes_first_and_the_worst_case_once_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It leaves nothing for the mix to break up, and every step shows the peak of each phase."""
    monkeypatch.setattr(CachingMemory, "caches", False)

    near, far = measured(Growing(10)), measured(Growing(), 10**6)

    assert near[0].activation_peak == MODEL + 8 * SAMPLE + 10
    assert far[1] == LEAST_STEPS
    assert len(far[0].seconds) == 1
    assert measured(Growing())[1] == LEAST_STEPS + 1


@pytest.mark.parametrize(("grows", "spread"), [(0, 0), (10, 10 * (MOST_STEPS - 3))])
def test_the_spread_is_of_the_worst_steps_after_the_mix(grows: int, spread: int) -> None:
    """The first step finds an empty cache, and one of mixed lengths is another step."""
    report, _ = measured(Growing(grows))

    assert report.spread == spread
    assert measure_evaluation(Growing(grows), 8, lambda step: None).spread == 0


def test_source_and_target_are_told_apart() -> None:
    """Each as a share of what a micro-batch of both takes; what they take together is neither's."""
    workload = Growing()
    workload.sides = (0.25, 0.5)

    assert measure_memory_fractions(workload, 8) == [0.25, 0.5]
    assert measure_memory_fractions(Growing(), 8) is None
