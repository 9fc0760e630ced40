"""Probers on cards that are made up, and what is asked of their trials."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autotune.devices.group import DeviceGroup, EmulatedDevices, GpuDevices
from autotune.devices.host import HostMeter
from autotune.devices.nvml import Nvml
from autotune.devices.processes import anonymous
from autotune.events import Emit, Notice
from autotune.readings import HostReading
from autotune.trial import Trial
from autotune.tuning.prober import Limits, WorkerProber, WorkloadSpec
from tests.support.fake_nvml import FakeDriver, FakeGpu
from tests.support.processes import workers_of
from tests.support.toy_workload import MIB, PATH

GIB = 2**30
CARD = 256 * MIB
TARGET = 0.5


class Host:
    """A made-up machine of 64 GiB, so that what else runs on this one changes nothing."""

    def __init__(self, root: Path) -> None:
        self.proc = root / "proc"
        self.cgroups = root / "cgroup"
        self.cgroups.mkdir()
        (self.proc / "self").mkdir(parents=True)
        self.counter = self.proc / "vmstat"
        self.counter.write_text("oom_kill 0\n")
        self.set_free(60 * GIB)

    def set_free(self, free: int) -> None:
        self.memory = HostReading(total=64 * GIB, used=64 * GIB - free)

    def sampler(self) -> HostMeter:
        meter = HostMeter(self.proc, self.cgroups)
        meter.machine = lambda: self.memory  # type: ignore[method-assign]
        return meter


@contextmanager
def prober_of(
    folder: Path,
    settings: dict[str, Any],
    *,
    path: str = PATH,
    world_size: int = 1,
    card: int = CARD,
    group: DeviceGroup | None = None,
    target: float = TARGET,
    silence: float = 60.0,
    idle: float = 60.0,
    emit: Emit = lambda event: None,
    host: Host | None = None,
) -> Iterator[WorkerProber]:
    """A prober of that workload, most often the toy, on that group or on an emulated card; a test can have one."""
    with WorkerProber(
        WorkloadSpec(path=path, settings=settings, world_size=world_size),
        group=group or EmulatedDevices(card, world_size),
        host=(host or Host(folder)).sampler(),
        limits=Limits(target=target, target_ram=0.8, silence=silence, idle=idle),
        emit=emit,
        log_path=folder / "log",
    ) as prober:
        yield prober


@contextmanager
def prober_on_gpu(
    folder: Path,
    settings: dict[str, Any],
    used: Callable[[], int],
    *,
    total: int = 4 * GIB,
    target: float = TARGET,
    events: list[object] | None = None,
) -> Iterator[WorkerProber]:
    """A prober of the toy on a GPU whose driver is made up and says that so much is used."""
    gpu, heard = FakeGpu(total=total, used=used), [] if events is None else events
    with FakeDriver([gpu]), Nvml.open() as nvml:
        on_gpu, group = {**settings, "device": gpu.uuid}, GpuDevices(nvml.devices)
        with prober_of(folder, on_gpu, group=group, target=target, emit=heard.append) as prober:
            yield prober


def held_by_workers(context: int = 0) -> int:
    """Anonymous bytes of this process's workers, and so much more for each that holds any."""
    held = [anonymous(worker.pid) for worker in workers_of(os.getpid())]
    return sum(amount + context for amount in held if amount)


def notices(events: Iterable[object]) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice)]


def peak_of(trial: Trial | None) -> int:
    """Of a trial that ran to its end."""
    assert trial is not None
    assert trial.peak is not None
    return trial.peak
