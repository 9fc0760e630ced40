"""The devices of a run: NVIDIA cards, emulated cards, or the host's memory. No torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from autotune.choices import DeviceKind
from autotune.devices.group import DeviceGroup, GpuDevices, HostDevice, cpu_devices
from autotune.devices.host import HostMeter
from autotune.devices.nvml import Nvml, NvmlDevice, visible
from autotune.errors import DeviceError, UsageError
from autotune.plan import MAX_WORLD_SIZE
from autotune.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSelection:
    """The devices of a run, one per process, and a notice about them."""

    group: DeviceGroup
    world_size: int
    driver: str | None = None
    notice: str | None = None
    shared: tuple[str, ...] = ()
    """What only one tuning may use at a time: cards by UUID, or `host-memory`."""


@contextmanager
def open_devices(
    device: Literal["auto", DeviceKind],
    *,
    num_processes: int | None,
    vram_limit: int | None,
    host: HostMeter,
) -> Iterator[DeviceSelection]:
    """The devices of that kind; the driver stays open until the block ends.

    Raises:
        UsageError: `num_processes` is not a number of processes.
        DeviceError: no driver or card for `cuda`, more processes than cards, or too little host RAM.
    """
    if num_processes is not None and num_processes < 1:
        raise UsageError(f"--num-processes {num_processes} is out of range", "give 1 or more")
    if num_processes is not None and num_processes > MAX_WORLD_SIZE:
        raise UsageError(
            f"--num-processes {num_processes} is out of range",
            f"give {MAX_WORLD_SIZE:,} or less",
        )
    why: str | None = None
    try:
        nvml = None if device == "cpu" else Nvml.open()
    except DeviceError as error:
        if device == "cuda":
            raise
        nvml, why = None, error.what
    if nvml is None:
        yield _on_cpu(num_processes or 1, vram_limit, host, why)
        return
    with nvml:
        shown = visible(nvml, os.environ)
        if not shown and device == "auto":
            why = "CUDA_VISIBLE_DEVICES hides every card" if nvml.devices else "there is no card"
            yield _on_cpu(num_processes or 1, vram_limit, host, why)
            return
        yield _on_gpus(nvml, shown, num_processes, vram_limit)


def _on_gpus(
    nvml: Nvml, shown: tuple[NvmlDevice, ...], num_processes: int | None, vram_limit: int | None
) -> DeviceSelection:
    if not shown:
        raise DeviceError(
            "the driver shows no card", "check CUDA_VISIBLE_DEVICES, or use --device cpu"
        )
    world_size = num_processes or len(shown)
    if world_size > len(shown):
        raise DeviceError(
            f"{world_size} processes, but {len(shown)} GPU{'s' if len(shown) > 1 else ''}",
            f"use --num-processes {len(shown)} or fewer",
        )
    return DeviceSelection(
        group=GpuDevices(shown[:world_size], vram_limit),
        world_size=world_size,
        driver=nvml.driver_version,
        shared=tuple(device.uuid for device in shown[:world_size]),
    )


def _on_cpu(
    world_size: int, vram_limit: int | None, host: HostMeter, why: str | None
) -> DeviceSelection:
    if vram_limit is None:
        notice = "on the CPU, against host RAM"
    else:
        notice = f"on the CPU, which emulates a card of {format_bytes(vram_limit)}"
    return DeviceSelection(
        group=cpu_devices(host, vram_limit, world_size),
        world_size=world_size,
        notice=f"{why}: {notice}" if why else notice,
        shared=("host-memory",) if vram_limit is None else (),
    )


def check_per_device(wanted: bool, devices: DeviceSelection) -> None:
    """Raises UsageError for --per-device without several devices."""
    if wanted and devices.world_size == 1:
        raise UsageError(
            "--per-device is for several cards, and there is one process", "leave it out"
        )
    if wanted and isinstance(devices.group, HostDevice):
        raise UsageError(
            "--per-device needs a card for each process, and these share the host's memory",
            "leave it out, or give --vram-limit",
        )
