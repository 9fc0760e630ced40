"""One probe, inside a worker: a few real optimizer steps at one size, and what they peaked at.

What a step is, the workload knows; the supervisor turns these counters into a verdict.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from autotune.memory import DeviceMemory

STEPS = 4
"""At most. The first step reads 4 to 18 % low on a CPU, the second within 1 %."""
SETTLED = 1.005
"""A step whose peak is at most this times the highest before it ends the probe."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one step took part with, on this rank."""

    samples: int
    tokens: int
    """Not counting padding."""


class Workload(Protocol):
    """The training step to be measured, built in a fresh process from plain settings."""

    memory: DeviceMemory
    facts: Mapping[str, Any]
    """What the supervisor has to know (JSON): `model`, `rows`, and a `fingerprint`."""

    def accumulate(self, size: int) -> Load:
        """Forward and backward over the worst-case micro-batches of one step, as in training."""

    def update(self) -> None:
        """The optimizer's step."""

    def any_rank(self, claim: bool) -> bool:
        """Whether any rank claims it; all ranks ask at the same time and get the same answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One rank's counters after a probe; bytes and seconds."""

    device: str
    fixed: int
    growing: int
    peak: int
    resident: int
    retries: int
    seconds: float
    """Of the steps that count for speed: all but the first, which warms up."""
    samples: int
    tokens: int

    def as_message(self) -> dict[str, Any]:
        return asdict(self)


def measure(workload: Workload, size: int, beat: Callable[[int], None]) -> Report:
    """Runs the steps until their peak has settled; `beat(step)` is called after each.

    Raises whatever the step raises; out of memory is told apart by `is_out_of_memory`.
    """
    memory = workload.memory
    memory.settle()
    retries = memory.retries()
    fixed = memory.resident()
    peaks: list[int] = []
    growing = 0
    timed, samples, tokens = 0.0, 0, 0
    for step in range(STEPS):
        memory.reset_peak()
        started = time.perf_counter()
        load = workload.accumulate(size)
        memory.synchronize()
        if step == 0 or not memory.caches:
            growing = max(growing, memory.peak())
        workload.update()
        memory.synchronize()
        if step > 0:
            timed += time.perf_counter() - started
            samples += load.samples
            tokens += load.tokens
        peaks.append(memory.peak())
        beat(step)
        # ranks that stopped at different steps would wait for each other for ever
        if not workload.any_rank(step == 0 or peaks[-1] > SETTLED * max(peaks[:-1])):
            break
    return Report(
        device=memory.device,
        fixed=fixed,
        growing=growing,
        peak=max(peaks),
        resident=memory.resident(),
        retries=memory.retries() - retries,
        seconds=timed,
        samples=samples,
        tokens=tokens,
    )
