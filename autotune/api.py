"""The tuner for training code that is not ours: one call, and the same search as `chatlm autotune`.

    found = find_micro_batch(step, ceiling=512, target=0.6)

A step function runs here, in the caller's own process. A workload that is named by its path runs in
worker processes, where a CUDA fault, a kernel kill or a hang costs nothing. Effective batches, data
and the model are the caller's business.
"""

import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.cause import Cause, Failure
from autotune.devices.allocator import is_out_of_memory
from autotune.devices.current import OwnDevice, own_device
from autotune.devices.group import DeviceGroup, EmulatedDevices, GpuDevices, HostDevice
from autotune.devices.host import HostMeter
from autotune.devices.nvml import Nvml, visible
from autotune.errors import ChatlmError, DeviceError, NothingFits, UsageError
from autotune.events import (
    Emit,
    Listeners,
    ProbeEnded,
    ProbeStarted,
    TuningEnded,
    TuningStarted,
)
from autotune.search import NOISE, Search
from autotune.trial import DeviceBudget, Measured, Trial, reevaluate
from autotune.tuning.loop import rebuild_search
from autotune.tuning.prober import Limits, Prober, WorkloadSpec
from autotune.units import check_fraction, format_bytes, parse_bytes
from autotune.verdict import Verdict

STEPS = 4
"""At most, at one size; fewer once the peak has settled."""
SETTLED = 1.005
"""A step that peaks at no more than this times the highest before it is the last."""
HOST_SHARE = 0.8
"""Of host memory, not to be exceeded beside a card; on the CPU the target itself where it is more."""

Step = Callable[[int], object]
"""One optimizer step of the caller's, forward to update, on a worst-case batch of so many samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The largest size that ran and fits, with its evidence; bytes and seconds."""

    size: int
    peak: int
    """Our own at that size, others' memory subtracted."""
    budget: int
    fixed: int
    """Resident before the step: the model, and the optimizer's state."""
    trials: tuple[Trial, ...]
    """Every size that was tried, in that order, held against the budgets of the end."""
    seconds: float


def find_micro_batch(
    step: Step | str,
    *,
    ceiling: int,
    target: float,
    vram_limit: int | str | None = None,
    divides: int | None = None,
    guess: int | None = None,
    settings: Mapping[str, Any] | None = None,
    emit: Emit | None = None,
) -> Found:
    """The largest micro-batch in 1..ceiling whose peak holds the share `target` of the device.

    A function is called as `step(size)`, a few times a size. The first call, at size 1 and before
    anything is measured, brings up what stays: gradients, the optimizer's state, the CUDA context.
    The device is the card that this call allocates on, else the host. The steps are real: keep what
    they must not change. Every exception but out of memory passes through untouched.

    A text is the path of a workload, `module:function`, which workers build from `settings`
    (`autotune.tuning.probe.Workload`). They run on the first visible card, else on the CPU.

    `vram_limit` (bytes or `20GiB`) pretends that the card is that large; on the CPU it makes one.
    `divides` tries only sizes that divide this effective batch. `guess` is a size to try first; one
    above the ceiling means the ceiling.

    Raises:
        NothingFits: not even size 1.
        UsageError: a target that is no share; a ceiling, `divides` or `guess` below 1.
        DeviceError: the device cannot be read, or others hold the target already.
    """
    started = time.monotonic()
    check_fraction(target, "target")
    for name, samples in (("ceiling", ceiling), ("divides", divides), ("guess", guess)):
        if samples is not None and samples < 1:
            raise UsageError(f"{name} {samples} is no number of samples", "give 1 or more")
    if settings is not None and not isinstance(step, str):
        raise UsageError("settings are for a workload that is named by its path, not for a step")
    limit = parse_bytes(vram_limit) if isinstance(vram_limit, str) else vram_limit
    listeners = Listeners([] if emit is None else [emit])
    source = (
        _in_workers(step, settings or {}, target, limit, listeners)
        if isinstance(step, str)
        else _in_this_process(step, target, limit)
    )
    with source as probes:
        trials: list[Trial] = []
        search = rebuild_search(trials, probes.budgets(), ceiling, noise=probes.noise, guess=guess)
        listeners(
            TuningStarted(
                model=probes.model, target=target, ceiling=ceiling, devices=probes.budgets()
            )
        )
        while (size := _next(search, divides)) is not None:
            listeners(ProbeStarted(size=size, low=search.low, high=search.high))
            trial = probes.probe(size)
            now = probes.budgets()
            trials = [reevaluate(t, now) or t for t in (*trials, trial)]
            search = rebuild_search(trials, now, ceiling, noise=probes.noise, guess=guess)
            listeners(ProbeEnded(trial=trials[-1], low=search.low, high=search.high))
        seconds = time.monotonic() - started
        listeners(TuningEnded(answer=search.answer, interrupted=False, seconds=seconds))
    return _found(trials, target, seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """What the search asks: a size goes in, a trial comes out."""

    model: str
    noise: float
    """How far apart two peaks of one size lie, as a share."""
    budgets: Callable[[], tuple[DeviceBudget, ...]]
    """What the devices allow now: neighbours may move between two probes."""
    probe: Callable[[int], Trial]


def _next(search: Search, divides: int | None) -> int | None:
    """What the search asks for, or the nearest size in its bracket that divides, smaller ones first."""
    asked = search.ask()
    if asked is None or divides is None:
        return asked
    inside = [size for size in range(search.low + 1, search.high) if divides % size == 0]
    return max((size for size in inside if size <= asked), default=min(inside, default=None))


def _found(trials: list[Trial], target: float, seconds: float) -> Found:
    fits = [trial for trial in trials if trial.verdict is Verdict.FITS]
    if not fits:
        raise _nothing_fits(min(trials, key=lambda trial: trial.size), target)
    best = max(fits, key=lambda trial: trial.size)
    assert best.peak is not None
    assert best.static_bytes is not None
    return Found(
        size=best.size,
        peak=best.peak,
        budget=best.budgets[best.tightest].budget,
        fixed=best.static_bytes,
        trials=tuple(trials),
        seconds=seconds,
    )


def _nothing_fits(smallest: Trial, target: float) -> NothingFits:
    allowed = smallest.budgets[smallest.tightest]
    what = (
        f"did not run ({smallest.reason})"
        if smallest.peak is None
        else f"peaked at {format_bytes(smallest.peak)}"
    )
    resident = (
        ""
        if smallest.static_bytes is None
        else f", {format_bytes(smallest.static_bytes)} before the step"
    )
    return NothingFits(
        f"size {smallest.size} {what}{resident}",
        f"the budget is {format_bytes(allowed.budget)}: "
        f"{100 * target:.3g} % of {format_bytes(allowed.total)}, less {format_bytes(allowed.others)} "
        "that others hold; use a smaller model or shorter samples, or a higher target",
    )


@contextmanager
def _in_this_process(step: Step, target: float, vram_limit: int | None) -> Iterator[Probes]:
    try:
        step(1)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        _forget(error)
        raise NothingFits(
            f"the first step, at size 1, ran out of memory ({_first_line(error)})",
            "use a smaller model or shorter samples, or a device with more memory",
        ) from error
    with own_device(target, vram_limit) as device:
        yield Probes(
            model=getattr(step, "__name__", type(step).__name__),
            noise=NOISE,  # the allocator's settings are the caller's
            budgets=lambda: (device.budget,),
            probe=lambda size: _probe(step, size, device),
        )


def _probe(step: Step, size: int, device: OwnDevice) -> Trial:
    """A few steps at one size; an allocation that fails leaves nothing of itself behind."""
    started = time.monotonic()
    memory = device.memory
    memory.release_cached()
    retries, fixed, highest = memory.retries(), device.static_bytes(), 0
    try:
        for _ in range(STEPS):
            memory.reset_peak()
            with device.guarded():
                step(size)
                memory.synchronize()
            before, highest = highest, max(highest, device.peak())
            if highest <= SETTLED * before:
                break
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        _forget(error)
        at_our_limit = device.budget.stops_early
        return Trial(
            size=size,
            verdict=Verdict.OVER if at_our_limit else Verdict.OOM,
            peak=None,
            seconds=time.monotonic() - started,
            budgets=(device.budget,),
            static_bytes=fixed,
            failure=Failure(
                cause=Cause.HARD_LIMIT if at_our_limit else Cause.DEVICE_OOM,
                detail=_first_line(error),
            ),
        )
    thrashed = memory.retries() > retries
    fits = highest <= device.budget.budget and not thrashed
    return Trial(
        size=size,
        verdict=Verdict.FITS if fits else Verdict.OVER,
        peak=highest,
        seconds=time.monotonic() - started,
        budgets=(device.budget,),
        measured=(Measured(peak=highest, static_bytes=fixed, activation_peak=highest),),
        static_bytes=fixed,
        failure=Failure(cause=Cause.THRASHING) if thrashed else None,
    )


def _forget(error: BaseException | None) -> None:
    """Lets go of the tensors in the frames that failed: whoever keeps the error kept them too."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


@contextmanager
def _in_workers(
    path: str, settings: Mapping[str, Any], target: float, vram_limit: int | None, emit: Emit
) -> Iterator[Probes]:
    """Probes by workers. Their log goes with the last of them, and stays where an error names it."""
    host = HostMeter()
    folder = Path(tempfile.mkdtemp(prefix="autotune-"))
    is_named = False
    try:
        with (
            _worker_cards(vram_limit, host) as group,
            Prober(
                WorkloadSpec(path=path, settings=settings),
                group=group,
                host=host,
                limits=Limits(target=target, target_ram=max(target, HOST_SHARE)),
                emit=emit,
                log_path=folder / "workers.log",
            ) as prober,
        ):
            workload_info = prober.open()
            yield Probes(
                model=workload_info["model"],
                noise=group.noise,
                budgets=lambda: prober.budgets,
                probe=prober.probe,
            )
    except ChatlmError as error:
        is_named = str(folder) in str(error)
        raise
    finally:
        if not is_named:
            shutil.rmtree(folder)


@contextmanager
def _worker_cards(vram_limit: int | None, host: HostMeter) -> Iterator[DeviceGroup]:
    """The first card that a worker sees; without one the CPU, which plays one under a limit."""
    try:
        nvml = Nvml.open()
    except DeviceError:
        yield HostDevice(host) if vram_limit is None else EmulatedDevices(vram_limit, 1)
        return
    with nvml:
        if shown := visible(nvml, os.environ):
            yield GpuDevices(shown[:1], vram_limit)
        else:
            yield HostDevice(host) if vram_limit is None else EmulatedDevices(vram_limit, 1)
