"""The devices that a tuning fills: whose memory counts, and what a probe peaked at on each.

Three kinds, one interface. `GpuDevices`: NVIDIA cards, one a rank, through the driver. `HostDevice`: the
machine's or the cgroup's memory, one device that all ranks share. `EmulatedDevices`: cards of a
made-up size on the CPU, one a rank, without other tenants.

The memory identity, per device: `budget = target × total − others`, and
`peak = max(sampled, used_now − reserved_now + max_reserved) − others`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from autotune.choices import DeviceKind
from autotune.devices.allocator import same_device
from autotune.devices.budget import hard_limit
from autotune.devices.host import HostMeter
from autotune.devices.nvml import NvmlDevice
from autotune.errors import DeviceError
from autotune.readings import DeviceReading, Held, Report
from autotune.search import NOISE
from autotune.trial import DeviceBudget, Measured
from autotune.units import format_bytes

CPU_NOISE = 0.003
"""Under the allocator's settings of `launch`: 0.3 % in any order of sizes."""


class DeviceGroup(Protocol):
    """The devices of one run, in the order of the ranks."""

    kind: DeviceKind
    """`cuda` or `cpu`: where the workers compute."""
    noise: float
    """How far apart two peaks of one size lie, as a share."""

    def read_baseline(self) -> tuple[DeviceReading, ...]:
        """The devices before any worker of ours runs: what is used is others'."""

    def read(self, resident: Mapping[int, int]) -> tuple[DeviceReading, ...]:
        """The devices now; `resident` is the workers' host memory by rank."""

    def measure(
        self, reports: Sequence[Report], budgets: Sequence[DeviceBudget], sampled: Sequence[int]
    ) -> list[Measured]:
        """What each device peaked at: `reports` by rank, `sampled` the highest use seen by device."""

    def unaccounted(self, held: Sequence[Held]) -> tuple[int, ...]:
        """By device, what is neither in the workers' allocators nor free: others and our context.

        Nothing where neighbours cannot disturb a probe, as where our own memory alone is counted.
        """

    def memory_cap(self, baseline: Sequence[DeviceReading]) -> int | None:
        """Bytes beyond which a worker's allocation must fail; None where the device itself says no."""


def budgets(baseline: Sequence[DeviceReading], target: float) -> tuple[DeviceBudget, ...]:
    """What may be held of each device.

    Raises:
        DeviceError: others hold the target already.
    """
    return tuple(
        budget(reading.device, reading.name, reading.total, reading.used, target)
        for reading in baseline
    )


def budget(device: str, name: str, total: int, others: int, target: float) -> DeviceBudget:
    """What may be held of one device; raises as `budgets` does."""
    ours = int(target * total) - others
    if ours <= 0:
        raise DeviceError(
            f"{name}: others hold {format_bytes(others)} of {format_bytes(total)}, which is the "
            f"whole target of {100 * target:.3g} % already",
            "tune for a higher --target-vram, or wait until they are done",
        )
    return DeviceBudget(
        device=device,
        name=name,
        total=total,
        others=others,
        budget=ours,
        hard_limit=hard_limit(total=total, used=others, target=target),
    )


class GpuDevices:
    """NVIDIA cards, rank by rank; `limit` pretends that each is that large."""

    kind: DeviceKind = "cuda"
    noise = NOISE  # not measured yet

    def __init__(self, devices: Sequence[NvmlDevice], limit: int | None = None) -> None:
        self._devices = tuple(devices)
        self._limit = limit

    def read_baseline(self) -> tuple[DeviceReading, ...]:
        return self.read({})

    def read(self, resident: Mapping[int, int]) -> tuple[DeviceReading, ...]:
        return tuple(self._limited(device.read()) for device in self._devices)

    def _limited(self, reading: DeviceReading) -> DeviceReading:
        if self._limit is None or self._limit >= reading.total:
            return reading
        name = f"{reading.name} as {format_bytes(self._limit)}"
        return replace(reading, name=name, total=self._limit)

    def measure(
        self, reports: Sequence[Report], budgets: Sequence[DeviceBudget], sampled: Sequence[int]
    ) -> list[Measured]:
        readings = self.read({})
        devices = [report.device for report in reports]
        return [
            peak_from_report(
                reports[on(budget.device, devices)], reading.used, budget.others, highest
            )
            for budget, reading, highest in zip(budgets, readings, sampled, strict=True)
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
    """The memory identity for one card; everything that torch does not count is `context`."""
    context = max(0, used_now - others - report.resident)
    return Measured(
        peak=max(sampled - others, context + report.peak),
        static_bytes=context + report.static_bytes,
        activation_peak=context + report.activation_peak,
        context=context,
        reserved=report.peak,
        allocated=report.allocated,
    )


class HostDevice:
    """Host memory as the device: all ranks share it, and their own pages are what counts."""

    kind: DeviceKind = "cpu"
    noise = CPU_NOISE

    def __init__(self, host: HostMeter) -> None:
        self._host = host
        self._others = 0

    def read_baseline(self) -> tuple[DeviceReading, ...]:
        reading = self._host.read()
        self._others = reading.used
        return (DeviceReading(device="cpu", name="CPU", total=reading.total, used=reading.used),)

    def read(self, resident: Mapping[int, int]) -> tuple[DeviceReading, ...]:
        reading = self._host.read()
        used = self._others + sum(resident.values())
        return (DeviceReading(device="cpu", name="CPU", total=reading.total, used=used),)

    def measure(
        self, reports: Sequence[Report], budgets: Sequence[DeviceBudget], sampled: Sequence[int]
    ) -> list[Measured]:
        return [
            Measured(
                peak=sum(report.peak for report in reports),
                static_bytes=sum(report.static_bytes for report in reports),
                activation_peak=sum(report.activation_peak for report in reports),
            )
        ]

    def unaccounted(self, held: Sequence[Held]) -> tuple[int, ...]:
        return ()

    def memory_cap(self, baseline: Sequence[DeviceReading]) -> int | None:
        return None


class EmulatedDevices:
    """Cards of `limit` bytes on the CPU, one a rank."""

    kind: DeviceKind = "cpu"
    noise = CPU_NOISE

    def __init__(self, limit: int, world_size: int) -> None:
        self._limit = limit
        self._world_size = world_size

    def read_baseline(self) -> tuple[DeviceReading, ...]:
        return self.read({})

    def read(self, resident: Mapping[int, int]) -> tuple[DeviceReading, ...]:
        return tuple(
            DeviceReading(
                device=f"cpu:{rank}",
                name="emulated card",
                total=self._limit,
                used=resident.get(rank, 0),
            )
            for rank in range(self._world_size)
        )

    def measure(
        self, reports: Sequence[Report], budgets: Sequence[DeviceBudget], sampled: Sequence[int]
    ) -> list[Measured]:
        return [
            Measured(
                peak=report.peak,
                static_bytes=report.static_bytes,
                activation_peak=report.activation_peak,
            )
            for report in reports
        ]

    def unaccounted(self, held: Sequence[Held]) -> tuple[int, ...]:
        return ()

    def memory_cap(self, baseline: Sequence[DeviceReading]) -> int | None:
        return self._limit
