"""A command's job: what to tune or train, on which devices, and where its events go."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import profiles
from autotune.devices.host import HostMeter
from autotune.devices.selection import DeviceSelection, check_per_device, open_devices
from autotune.devices.shared_memory import free_shared_memory, shortage
from autotune.events import Emit, Notice
from autotune.files import temporary_files
from autotune.plan import Plan
from autotune.tuning.prober import Limits, WorkerProber, WorkloadSpec
from autotune.units import check_fraction, parse_bytes
from profiles import Profile
from profiles.store import FOLDER, check_name, check_place
from trainer.artifacts.run_folder import RunFolder
from trainer.config.launch_environment import wants_gloo
from trainer.config.options import AutotuneOptions, Backend, TrainOptions
from trainer.config.resolve import resolve, workload_settings
from trainer.config.settings import TrainSettings, WorkloadSettings
from trainer.reading.readers import look

Listen = Callable[[], AbstractContextManager[tuple[Emit, Path]]]
"""Opens the listeners of a command: where events go, and the text log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The part of both commands: devices, host, and where events go."""

    devices: DeviceSelection
    host: HostMeter
    emit: Emit
    log_path: Path

    def prober(self, workload: str, limits: Limits, settings: dict[str, Any]) -> WorkerProber:
        """A prober of the workload `module:function` on the job's devices."""
        spec = WorkloadSpec(path=workload, settings=settings, world_size=self.devices.world_size)
        return WorkerProber(
            spec, group=self.devices.group, host=self.host, limits=limits, emit=self.emit,
            log_path=self.log_path,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneJob(Job):
    """What to tune and within which limits."""

    options: AutotuneOptions
    settings: WorkloadSettings
    workload: str
    """The import path of the workload, `module:function`."""
    base: Profile
    path: Path
    """Where the profile is written."""
    limits: Limits
    vram_limit: int | None
    """Each card is treated as this large, bytes."""

    @property
    def effective_batch(self) -> int:
        """The user's effective batch, else the base profile's, which a tuned size may let grow."""
        return self.options.effective_batch or self.base.batch.effective_batch_size

    @property
    def is_fixed(self) -> bool:
        """Whether the user chose the effective batch, so that it may not grow."""
        return self.options.effective_batch is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob(Job):
    """What to train."""

    settings: TrainSettings
    profile: Profile
    lock: tuple[int, ...] = ()
    """Descriptors that hold the run's folder; workers inherit them."""


@contextmanager
def open_tune_job(options: AutotuneOptions, *, workload: str, listen: Listen) -> Iterator[TuneJob]:
    """The job of `chatlm autotune`, every choice checked; its devices stay open until the block ends.

    Raises:
        ChatlmError: a choice is out of range, a file cannot be read or written, or no device is there.
    """
    with temporary_files():
        tempfile.gettempdir()
    limits = Limits(
        target=check_fraction(options.target_vram, "--target-vram"),
        target_ram=check_fraction(options.target_ram, "--target-ram"),
    )
    vram_limit = None if options.vram_limit is None else parse_bytes(options.vram_limit)
    path = FOLDER / f"{check_name(options.name)}.toml"
    check_place(path)
    base = profiles.load(options.base)
    host = HostMeter()
    with open_devices(
        options.device, num_processes=options.num_processes, vram_limit=vram_limit, host=host
    ) as devices:
        check_per_device(options.per_device, devices)
        if options.effective_batch is not None:  # a base profile's may grow to one per device
            effective = options.effective_batch
            Plan(micro_batch=1, effective_batch=effective, world_size=devices.world_size)
        settings = workload_settings(options, base, device=devices.group.kind)
        how_read = look((*settings.data, *(options.eval_data or ())), settings.columns)
        with listen() as (emit, log_path):
            shortage_of = shared_memory_notice(devices, options.backend, loaders=0)
            _notify(emit, *how_read, devices.notice, shortage_of)
            yield TuneJob(
                options=options, settings=settings, workload=workload, base=base, path=path,
                limits=limits, vram_limit=vram_limit, devices=devices, host=host, emit=emit,
                log_path=log_path,
            )  # fmt: skip


@contextmanager
def open_train_job(options: TrainOptions, *, listen: Listen) -> Iterator[TrainJob]:
    """The job of `chatlm train`, every choice checked; its devices stay open until the block ends.

    Raises:
        ChatlmError: a choice is out of range, a file cannot be read or written, or no device is there.
    """
    with temporary_files():
        tempfile.gettempdir()
    profile = profiles.load(options.profile)
    num_processes = options.num_processes
    if num_processes is None and profile.fingerprint.model is not None:  # no preset
        num_processes = profile.fingerprint.world_size
    host = HostMeter()
    with open_devices(
        options.device,
        num_processes=num_processes,
        vram_limit=profile.memory.vram_limit_bytes,
        host=host,
    ) as devices:
        settings = resolve(
            profile, options, device=devices.group.kind, world_size=devices.world_size
        )
        how_read = look((*settings.workload.data, *settings.eval_data), settings.workload.columns)
        folder = RunFolder(Path(settings.output_dir))
        with folder.locked() as lock:
            came_back = folder.settle()
            folder.check(settings.run_key(), fresh=settings.fresh)
            with listen() as (emit, log_path):
                loaders = profile.run.loader_workers
                interrupted = (
                    f"profile {options.profile} is from an interrupted tuning: more may fit"
                )
                _notify(
                    emit,
                    came_back,
                    *how_read,
                    devices.notice,
                    shared_memory_notice(devices, options.backend, loaders=loaders),
                    interrupted if profile.interrupted else None,
                )
                try:
                    yield TrainJob(
                        settings=settings, profile=profile, devices=devices, host=host, emit=emit,
                        log_path=log_path, lock=lock,
                    )  # fmt: skip
                finally:
                    _notify(emit, folder.settle())


def shared_memory_notice(
    devices: DeviceSelection, backend: Backend | None, *, loaders: int
) -> str | None:
    """A line about too little shared memory for NCCL or the loaders; None where there is enough."""
    uses_nccl = devices.group.kind == "cuda" and devices.world_size > 1 and not wants_gloo(backend)
    return shortage(
        free_shared_memory(),
        nccl_ranks=devices.world_size if uses_nccl else 0,
        loader_workers=loaders * devices.world_size,
    )


def _notify(emit: Emit, *notices: str | None) -> None:
    for text in filter(None, notices):
        emit(Notice(text=text))
