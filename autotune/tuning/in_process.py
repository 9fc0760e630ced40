"""A prober for a step function in the caller's own process; see `prober` for the one with workers."""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from autotune.cause import Cause, Failure
from autotune.devices.allocator import DeviceMemory, is_out_of_memory
from autotune.devices.current import OwnDevice, own_device
from autotune.errors import NothingFits, first_line
from autotune.search import NOISE
from autotune.trial import Trial, measured_trial
from autotune.tuning.per_device import Sizes
from autotune.tuning.probe import Load, measure
from autotune.verdict import Verdict

StepFunction = Callable[[int], object]
"""The caller's optimizer step, forward to update, on a worst-case batch of that many samples."""


class StepProber:
    """Probes a step function; after out of memory it frees the tensors of the failed step."""

    noise = NOISE  # the allocator's settings are the caller's

    def __init__(self, step: StepFunction, device: OwnDevice, target: float) -> None:
        self.target = target
        self.is_rough = device.is_rough
        self.budgets = (device.budget,)
        self._workload = StepWorkload(step, device.memory)
        self._device = device

    def open(self) -> dict[str, Any]:
        step = self._workload.step
        return {"model": getattr(step, "__name__", type(step).__name__)}

    def probe(self, size: int | Sizes) -> Trial:
        """A few steps at one size. Every exception but out of memory passes through."""
        assert isinstance(size, int)
        started = time.monotonic()
        static_bytes = self._device.static_bytes()
        try:
            with self._device.limited():
                report = measure(self._workload, size, lambda step: None)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            forget_frames(error)
            at_our_limit = self._device.budget.stops_early
            return Trial(
                size=size,
                sizes=(size,),
                verdict=Verdict.OVER if at_our_limit else Verdict.OOM,
                peak=None,
                seconds=time.monotonic() - started,
                budgets=self.budgets,
                static_bytes=static_bytes,
                failure=Failure(
                    cause=Cause.HARD_LIMIT if at_our_limit else Cause.DEVICE_OOM,
                    detail=first_line(error),
                ),
            )
        seconds = time.monotonic() - started
        measured = self._device.measure(report)
        return measured_trial((size,), (report,), measured, self.budgets, seconds=seconds)


@dataclass
class StepWorkload:
    """A step function as a workload: the whole step is its forward and backward."""

    step: StepFunction
    memory: DeviceMemory

    def forward_backward(self, size: int) -> Load:
        self.step(size)
        return Load(samples=size, tokens=0)

    def mixed_lengths_step(self, size: int) -> None:
        self.step(size)

    def optimizer_step(self) -> None:
        return

    def any_rank(self, claim: bool) -> bool:
        return claim


@contextmanager
def step_prober(step: StepFunction, target: float, vram_limit: int | None) -> Iterator[StepProber]:
    """The prober, after a first step at size 1 that allocates what stays resident.

    Raises:
        NothingFits: that step runs out of memory.
        DeviceError: the device cannot be read, or others hold the target already.
    """
    try:
        step(1)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        forget_frames(error)
        raise NothingFits(
            f"the first step, at size 1, ran out of memory ({first_line(error)})",
            "use a smaller model or shorter samples, or a device with more memory",
        ) from error
    with own_device(target, vram_limit) as device:
        yield StepProber(step, device, target)


def forget_frames(error: BaseException | None) -> None:
    """Drops the tensors in the frames of the failed call, which the error would keep alive."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
