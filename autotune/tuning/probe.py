"""One probe, inside a worker: a few real optimizer steps at one size, and their peak.

The workload defines the step; the supervisor turns the counters into a verdict.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from autotune.devices.allocator import DeviceMemory
from autotune.readings import Report

LEAST_STEPS = 2
"""Mixed lengths, which warm up, then the worst case. With a caching allocator the worst case comes first too,
since only an empty cache shows the peak of each phase. A peak near the budget is repeated once more, which
shows how far equal steps differ."""
MOST_STEPS = 8
"""Used while the peak has not settled or the steps are too short to time."""
SETTLED = 1.02
"""The peak has settled when a step is at most this factor above the highest before it. On a CPU equal
steps differ by less than 0.1 % (t5-8m, 184 sequences of 256; chatlm-tiny, 398)."""
TIMED = 0.3
"""A speed needs at least this many seconds of timed steps."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one step trained on, on this rank."""

    samples: int
    tokens: int
    """Not counting padding."""


class MeasuredStep(Protocol):
    """One training step, as `measure` runs it."""

    memory: DeviceMemory

    def forward_backward(self, size: int) -> Load:
        """Forward and backward over the worst-case micro-batches of one step, as in training."""

    def mixed_lengths_step(self, size: int) -> None:
        """The same over shuffled micro-batches, short and long, none above that size.

        They fragment the allocator's cache, as hours of training do.
        """

    def optimizer_step(self) -> None:
        """The optimizer's step."""

    def any_rank(self, claim: bool) -> bool:
        """Whether any rank claims it; all ranks ask at the same time and get the same answer."""


class Workload(MeasuredStep, Protocol):
    """The training to be measured, built in a fresh process from plain settings."""

    workload_info: Mapping[str, Any]
    """What the supervisor must know (JSON): `model`, `rows`, and a `fingerprint`."""

    def evaluate(self, size: int) -> Load:
        """Forward alone over one worst-case batch, as in evaluation."""

    def data_wait(self, size: int, *, loaders: int, busy: float) -> tuple[float, int]:
        """Seconds that a step of `busy` seconds waits for its data, and the loaders' bytes."""

    def dry_run(self, size: int, side: int | None) -> bool:
        """Forward and backward of `size` sequences, longest on that side alone; with None on both sides.

        Side 0 is the source, side 1 the target. False for a side of data that are padded as one: nothing ran.
        """


def measure(
    workload: MeasuredStep, size: int, beat: Callable[[int], None], *, safe: int | None = None
) -> Report:
    """Runs training steps until their peak has settled; `beat(step)` is called after each.

    A peak below `safe` bytes need neither settle nor be repeated. Raises whatever the step raises;
    `is_out_of_memory` tells out of memory apart.
    """
    memory = workload.memory
    memory.release_cached()
    retries = memory.retries()
    static_bytes = memory.resident()
    peaks: list[int] = []
    seconds: list[float] = []
    activation_peak = allocated = 0
    load = Load(0, 0)
    mixed = int(memory.caches)
    """The step of mixed lengths: without a cache the worst case leaves nothing for it to break up."""
    for step in range(MOST_STEPS):
        memory.reset_peak()
        started = time.perf_counter()
        if step == mixed:
            workload.mixed_lengths_step(size)
        else:
            load = workload.forward_backward(size)
        memory.synchronize()
        if step == 1 - mixed:
            activation_peak = memory.peak()
        workload.optimizer_step()
        memory.synchronize()
        if step > mixed:
            seconds.append(time.perf_counter() - started)
        peaks.append(memory.peak())
        allocated = max(allocated, memory.peak_allocated())
        beat(step)
        counts = safe is None or peaks[-1] > safe
        grows = counts and peaks[-1] > SETTLED * max(peaks[:-1], default=0)
        least = LEAST_STEPS + mixed + counts
        # ranks that stop at different steps wait for each other for ever
        if not workload.any_rank(step + 1 < least or grows or sum(seconds) < TIMED):
            break
    retries = memory.retries() - retries
    memory.release_cached()  # a cache would look like a tenant's memory
    return Report(
        device=memory.device,
        static_bytes=static_bytes,
        activation_peak=activation_peak,
        peak=max(peaks),
        allocated=allocated,
        resident=memory.resident(),
        retries=retries,
        seconds=tuple(seconds),
        samples=load.samples,
        tokens=load.tokens,
        outside=memory.outside(),
        spread=max(peaks[mixed + 1 :]) - min(peaks[mixed + 1 :]),
    )


def measure_memory_fractions(workload: Workload, size: int) -> list[float] | None:
    """The shares of source and target in a micro-batch's tensor memory; None if padded as one."""
    memory = workload.memory

    def growth(side: int | None) -> int:
        memory.release_cached()
        before = memory.allocated()
        memory.reset_peak()
        workload.dry_run(size, side)
        memory.synchronize()
        return max(0, memory.peak_allocated() - before)

    if not workload.dry_run(1, 0):
        return None
    whole, *sides = (growth(side) for side in (None, 0, 1))
    memory.release_cached()
    return [part / whole for part in sides] if whole else None


def measure_evaluation(workload: Workload, size: int, beat: Callable[[int], None]) -> Report:
    """The report of an evaluation: forward only, twice, beside what training keeps resident."""
    memory = workload.memory
    memory.release_cached()
    retries = memory.retries()
    static_bytes = memory.resident()
    peaks: list[int] = []
    allocated = 0
    for turn in range(2):
        memory.reset_peak()
        started = time.perf_counter()
        load = workload.evaluate(size)
        memory.synchronize()
        seconds = time.perf_counter() - started
        peaks.append(memory.peak())
        allocated = max(allocated, memory.peak_allocated())
        beat(turn)
    retries = memory.retries() - retries
    memory.release_cached()
    return Report(
        device=memory.device,
        static_bytes=static_bytes,
        activation_peak=max(peaks),
        peak=max(peaks),
        allocated=allocated,
        resident=memory.resident(),
        retries=retries,
        seconds=(seconds,),
        samples=load.samples,
        tokens=load.tokens,
        outside=memory.outside(),
        spread=max(peaks) - min(peaks),
    )
