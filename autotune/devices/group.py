"""The devices that a tuning fills: whose memory counts, and the peak of a probe on each.

How the peak is formed, per device: `budget = target × total − others`, and
`peak = max(sampled, used_now − reserved_now + max_reserved) − others`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from autotune.choices import DeviceKind
from autotune.devices.allocator import same_device
from autotune.devices.budget import context_bytes
from autotune.devices.host import HostMeter
from autotune.devices.nvml import NvmlDevice
from autotune.errors import DeviceError
from autotune.readings import DeviceBudget, DeviceReading, Held, Measured, Outside, Report
from autotune.search import NOISE
from autotune.units import format_bytes

CPU_NOISE = 0.003
"""Under the allocator's settings of `launch`: 0.3 % in any order of sizes."""


class DeviceGroup(Protocol):
    """The devices of one run, in the order of the ranks; the defaults are those of the CPU."""

    kind: DeviceKind = "cpu"
    """Where the workers compute."""
    noise: float = CPU_NOISE
    """How far apart two peaks of one size lie, as a share."""
    counts_libraries: bool = False
    """Whether what the workers' libraries hold of the host takes from the device."""
    is_rough: bool = False
    """Whether kernels and workspaces change with the size, so that memory does not follow a line."""

    def read_baseline(self) -> tuple[DeviceReading, ...]:
        """The devices before our workers start: all used bytes are others'."""
        return self.read({})

    def read(self, held: Mapping[int, int]) -> tuple[DeviceReading, ...]:
        """The devices now; `held` is what the workers hold of the host by rank, bytes (`WorkerGroup.held`)."""

    def measure(
        self, reports: Sequence[Report], budgets: Sequence[DeviceBudget], sampled: Sequence[int]
    ) -> list[Measured]:
        """The peak of each device; `reports` by rank, `sampled` the highest sample by device, bytes."""

    def unaccounted(self, held: Sequence[Held]) -> tuple[int, ...]:
        """By device, the bytes that are neither free nor in the workers' allocators: tenants and our context.

        Empty where only our own memory counts, so that no tenant can disturb a probe.
        """
        return ()

    def memory_cap(self, baseline: Sequence[DeviceReading]) -> int | None:
        """Bytes at which a worker's allocation must fail; None where the device itself refuses it."""
        return None


class GpuDevices(DeviceGroup):
    """NVIDIA cards, one a rank, through the driver; each is treated as at most `limit` bytes large."""

    kind: DeviceKind = "cuda"
    noise = NOISE  # not measured yet
    is_rough = True  # as on the cards of docs/search.md

    def __init__(self, devices: Sequence[NvmlDevice], limit: int | None = None) -> None:
        self._devices = tuple(devices)
        self._limit = limit

    def read(self, held: Mapping[int, int]) -> tuple[DeviceReading, ...]:
        return tuple(self._limited(device.read()) for device in self._devices)

    def _limited(self, reading: DeviceReading) -> DeviceReading:
        if self._limit is None or self._limit >= reading.total:
            return reading
        name = f"{reading.name} as {format_bytes(self._limit)}"
        return replace(reading, name=name, total=self._limit)

    def measure(
        self, reports: Sequence[Report], budgets: Sequence[DeviceBudget], sampled: Sequence[int]
    ) -> list[Measured]:
        devices = [report.device for report in reports]
        return [
            peak_from_report(
                reports[on(budget.device, devices)], reading.used, budget.others, highest
            )
            for budget, reading, highest in zip(budgets, self.read({}), sampled, strict=True)
        ]

    def unaccounted(self, held: Sequence[Held]) -> tuple[int, ...]:
        devices = [part.device for part in held]
        return tuple(
            reading.used - held[on(reading.device, devices)].resident for reading in self.read({})
        )

    def memory_cap(self, baseline: Sequence[DeviceReading]) -> int | None:
        if self._limit is None:
            return None
        return min(reading.total - reading.used for reading in baseline)


def on(device: str, ranks: Sequence[str]) -> int:
    """The rank that runs on the device; `ranks` are the devices of the ranks.

    Raises:
        DeviceError: none does.
    """
    for rank, its_device in enumerate(ranks):
        if same_device(its_device, device):
            return rank
    raise DeviceError(
        f"the workers run on {', '.join(ranks)}, not on {device} where memory is read",
        "check CUDA_VISIBLE_DEVICES",
    )


def peak_from_report(report: Report, used_now: int, others: int, sampled: int) -> Measured:
    """The peak of one card; everything that torch does not count is `context`."""
    context = context_bytes(used_now - report.resident, others)
    return Measured(
        peak=max(sampled - others, context + report.peak),
        static_bytes=context + report.static_bytes,
        activation_peak=context + report.activation_peak,
        context=context,
        reserved=report.peak,
        allocated=report.allocated,
        spread=report.spread,
        outside=report.outside,
    )


class HostDevice(DeviceGroup):
    """The machine's or the cgroup's memory, one device that all ranks share.

    What their libraries hold counts too: it is a process's context here.
    """

    counts_libraries = True

    def __init__(self, host: HostMeter) -> None:
        self._host = host
        self._others = 0

    def read_baseline(self) -> tuple[DeviceReading, ...]:
        self._others = self._host.read().used
        return self.read({})

    def read(self, held: Mapping[int, int]) -> tuple[DeviceReading, ...]:
        used = self._others + sum(held.values())
        total = self._host.read().total
        return (DeviceReading(device="cpu", name="CPU", total=total, used=used),)

    def measure(
        self, reports: Sequence[Report], budgets: Sequence[DeviceBudget], sampled: Sequence[int]
    ) -> list[Measured]:
        measured = _sum_of(reports)
        context = measured.outside.libraries
        return [
            replace(
                measured,
                peak=context + measured.peak,
                static_bytes=context + measured.static_bytes,
                activation_peak=context + measured.activation_peak,
                context=context,
            )
        ]


class EmulatedDevices(DeviceGroup):
    """Cards of `limit` bytes on the CPU, one a rank, without other tenants."""

    def __init__(self, limit: int, world_size: int) -> None:
        self._limit = limit
        self._world_size = world_size

    def read(self, held: Mapping[int, int]) -> tuple[DeviceReading, ...]:
        return tuple(
            DeviceReading(
                device=f"cpu:{rank}",
                name="emulated card",
                total=self._limit,
                used=held.get(rank, 0),
            )
            for rank in range(self._world_size)
        )

    def measure(
        self, reports: Sequence[Report], budgets: Sequence[DeviceBudget], sampled: Sequence[int]
    ) -> list[Measured]:
        return [_sum_of([report]) for report in reports]

    def memory_cap(self, baseline: Sequence[DeviceReading]) -> int | None:
        return self._limit


def cpu_devices(host: HostMeter, vram_limit: int | None, world_size: int) -> DeviceGroup:
    """The host's memory, or emulated cards of `vram_limit` bytes in it.

    Raises:
        DeviceError: the cards do not fit into host RAM.
    """
    if vram_limit is None:
        return HostDevice(host)
    if vram_limit * world_size > host.read().total:
        raise DeviceError(
            f"{world_size} emulated card(s) of {format_bytes(vram_limit)} do not fit into "
            f"{format_bytes(host.read().total)} of host RAM",
            "use a smaller --vram-limit",
        )
    return EmulatedDevices(vram_limit, world_size)


def _sum_of(reports: Sequence[Report]) -> Measured:
    return Measured(
        peak=sum(report.peak for report in reports),
        static_bytes=sum(report.static_bytes for report in reports),
        activation_peak=sum(report.activation_peak for report in reports),
        outside=sum((report.outside for report in reports), Outside()),
        spread=sum(report.spread for report in reports),
    )
