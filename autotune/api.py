"""The tuner for training code that is not ours: one call, and the same search as `chatlm autotune`.

    found = find_micro_batch(step, ceiling=512, target=0.6)

A step function runs here, in the caller's own process. A workload that is named by its path runs in
worker processes, where a CUDA fault, a kernel kill or a hang ends only the workers. The caller handles
effective batches, data and the model.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.devices.host import HostMeter
from autotune.devices.selection import open_devices
from autotune.errors import UsageError, WorkerError
from autotune.events import Emit, Listeners
from autotune.files import temporary_files
from autotune.trial import Trial
from autotune.tuning.in_process import StepFunction, step_prober
from autotune.tuning.loop import Outcome, Prober, tune
from autotune.tuning.prober import Limits, WorkerProber, WorkloadSpec
from autotune.units import check_fraction, parse_bytes

HINTS = (
    "use a smaller model or shorter samples, or a higher target",
    "end what else uses host memory, or use a smaller model",
)
"""What to try when nothing fits: the device, or the host's memory."""
HOST_SHARE = 0.8
"""Share of host memory that workers may take; a higher target raises it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The largest size that ran and fits, with its evidence; bytes and seconds."""

    size: int
    peak: int
    """Our own peak at that size, others' memory subtracted."""
    budget: int
    fixed: int
    """Resident before the step: the model, and the optimizer's state."""
    trials: tuple[Trial, ...]
    """Every trial in order, with its verdict under the final budgets."""
    seconds: float


def find_micro_batch(
    step: StepFunction | str,
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

    A function is called as `step(size)`, a few times a size. The first call, at size 1, is not
    measured; it allocates what stays: gradients, optimizer state, the CUDA context. The device is
    the card that this call allocates on, else the host. The steps are real: save what they must not
    change. Every exception but out of memory is raised unchanged.

    A string is the path of a workload, `module:function`; workers build it from `settings`
    (`autotune.tuning.probe.Workload`). They run on the first visible card, else on the CPU.

    `vram_limit` (bytes or `20GiB`) treats the card as that large; on the CPU it emulates a card.
    `divides` tries only sizes that divide this effective batch. `guess` is tried first, or the
    ceiling if that is smaller.

    Raises:
        NothingFits: not even size 1 fits.
        UsageError: a target outside 0..1; a ceiling, `divides` or `guess` below 1.
        DeviceError: the device cannot be read, or others hold the target already.
    """
    check_fraction(target, "target")
    for name, samples in (("ceiling", ceiling), ("divides", divides), ("guess", guess)):
        if samples is not None and samples < 1:
            raise UsageError(f"{name} {samples} is out of range", "give 1 or more")
    if settings is not None and not isinstance(step, str):
        raise UsageError("settings are for a workload that is named by its path, not for a step")
    limit = parse_bytes(vram_limit) if isinstance(vram_limit, str) else vram_limit
    listeners = Listeners([] if emit is None else [emit])
    source: AbstractContextManager[Prober] = (
        _workers(step, settings or {}, target, limit, listeners)
        if isinstance(step, str)
        else step_prober(step, target, limit)
    )
    with source as prober:
        outcome = tune(
            prober,
            ceiling=lambda info: ceiling,
            guess=lambda info: None if guess is None else (guess,),
            divides=divides,
            emit=listeners,
        )
    if outcome.interrupted:
        raise KeyboardInterrupt
    return _found(outcome)


def _found(outcome: Outcome) -> Found:
    best = outcome.answer
    if best is None:
        raise outcome.nothing_fits(*HINTS)
    assert best.peak is not None
    assert best.static_bytes is not None
    return Found(
        size=best.size,
        peak=best.peak,
        budget=best.budgets[best.tightest].budget,
        fixed=best.static_bytes,
        trials=outcome.trials,
        seconds=outcome.seconds,
    )


@contextmanager
def _workers(
    path: str, settings: Mapping[str, Any], target: float, vram_limit: int | None, emit: Emit
) -> Iterator[Prober]:
    """A prober with workers. Their log is removed at the end, unless an error names it."""
    host = HostMeter()
    with temporary_files():
        folder = Path(tempfile.mkdtemp(prefix="autotune-"))
    keeps_log = False
    try:
        with (
            open_devices("auto", num_processes=1, vram_limit=vram_limit, host=host) as devices,
            WorkerProber(
                WorkloadSpec(path=path, settings=settings),
                group=devices.group,
                host=host,
                limits=Limits(target=target, target_ram=max(target, HOST_SHARE)),
                emit=emit,
                log_path=folder / "workers.log",
            ) as prober,
        ):
            yield prober
    except WorkerError:
        keeps_log = True
        raise
    finally:
        if not keeps_log:
            shutil.rmtree(folder)
