"""The devices that a tuning fills: whose memory counts, and what a probe peaked at on each.

Three kinds, one interface. `GpuCards`: NVIDIA cards, one a rank, through the driver. `HostCard`: the
machine's or the cgroup's memory, one device that all ranks share. `EmulatedCards`: cards of a
made-up size on the CPU, one a rank, without other tenants.

The memory identity, per device: `budget = target × total − others`, and
`peak = max(sampled, used_now − reserved_now + max_reserved) − others`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from autotune.errors import DeviceError
from autotune.host import HostMeter
from autotune.nvml import NvmlDevice
from autotune.probe import Report
from autotune.quantity import format_bytes
from autotune.readings import DeviceReading
from autotune.trial import DeviceBudget


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One device after a probe, others' memory subtracted; bytes."""

    peak: int
    fixed: int
    growing: int


class Cards(Protocol):
    """The devices of one run, in the order of the ranks."""

    kind: str
    """`cuda` or `cpu`: where the workers compute."""

    def survey(self) -> tuple[DeviceReading, ...]:
        """The devices before any worker of ours runs: what is used is others'."""

    def read(self, resident: Mapping[int, int]) -> tuple[DeviceReading, ...]:
        """The devices now; `resident` is the workers' host memory by rank."""

    def measure(
        self, reports: Sequence[Report], budgets: Sequence[DeviceBudget], sampled: Sequence[int]
    ) -> list[Measured]:
        """What each device peaked at: `reports` by rank, `sampled` the highest use seen by device."""

    def allowance(self, survey: Sequence[DeviceReading]) -> int | None:
        """Bytes beyond which a worker's allocation must fail; None where the device itself says no."""


def budgets(survey: Sequence[DeviceReading], target: float) -> tuple[DeviceBudget, ...]:
    """What may be held of each device.

    Raises:
        DeviceError: others hold the target already.
    """
    for reading in survey:
        if int(target * reading.total) <= reading.used:
            raise DeviceError(
                f"{reading.name}: others hold {format_bytes(reading.used)} of "
                f"{format_bytes(reading.total)}, which is the whole target of {100 * target:.3g} % already; "
                f"tune for a higher --target-vram, or wait until they are done"
            )
    return tuple(
        DeviceBudget(
            device=reading.device,
            name=reading.name,
            total=reading.total,
            others=reading.used,
            budget=int(target * reading.total) - reading.used,
        )
        for reading in survey
    )


class GpuCards:
    """NVIDIA cards, rank by rank; `limit` pretends that each is that large."""

    kind = "cuda"

    def __init__(self, devices: Sequence[NvmlDevice], limit: int | None = None) -> None:
        self._devices = tuple(devices)
        self._limit = limit

    def survey(self) -> tuple[DeviceReading, ...]:
        return self.read({})

    def read(self, resident: Mapping[int, int]) -> tuple[DeviceReading, ...]:
        return tuple(self._limited(device.read()) for device in self._devices)

    def _limited(self, reading: DeviceReading) -> DeviceReading:
        if self._limit is None or self._limit >= reading.total:
            return reading
        return DeviceReading(
            device=reading.device,
            name=f"{reading.name} as {format_bytes(self._limit)}",
            total=self._limit,
            used=reading.used,
            utilization=reading.utilization,
            temperature=reading.temperature,
            power=reading.power,
        )

    def measure(
        self, reports: Sequence[Report], budgets: Sequence[DeviceBudget], sampled: Sequence[int]
    ) -> list[Measured]:
        by_device = {report.device: report for report in reports}
        missing = [budget.device for budget in budgets if budget.device not in by_device]
        if missing:
            raise DeviceError(
                f"the workers run on {', '.join(by_device)}, not on {', '.join(missing)} where "
                f"memory is read; check CUDA_VISIBLE_DEVICES"
            )
        readings = self.read({})
        return [
            identity(by_device[budget.device], reading.used, budget.others, highest)
            for budget, reading, highest in zip(budgets, readings, sampled, strict=True)
        ]

    def allowance(self, survey: Sequence[DeviceReading]) -> int | None:
        if self._limit is None:
            return None
        return min(reading.total - reading.used for reading in survey)


def identity(report: Report, used_now: int, others: int, sampled: int) -> Measured:
    """The memory identity for one card; everything that torch does not count is `context`."""
    context = max(0, used_now - others - report.resident)
    return Measured(
        peak=max(sampled - others, context + report.peak),
        fixed=context + report.fixed,
        growing=context + report.growing,
    )


class HostCard:
    """Host memory as the device: all ranks share it, and their own pages are what counts."""

    kind = "cpu"

    def __init__(self, host: HostMeter) -> None:
        self._host = host
        self._others = 0

    def survey(self) -> tuple[DeviceReading, ...]:
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
                fixed=sum(report.fixed for report in reports),
                growing=sum(report.growing for report in reports),
            )
        ]

    def allowance(self, survey: Sequence[DeviceReading]) -> int | None:
        return None


class EmulatedCards:
    """Cards of `limit` bytes on the CPU, one a rank."""

    kind = "cpu"

    def __init__(self, limit: int, world_size: int) -> None:
        self._limit = limit
        self._world_size = world_size

    def survey(self) -> tuple[DeviceReading, ...]:
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
            Measured(peak=report.peak, fixed=report.fixed, growing=report.growing)
            for report in reports
        ]

    def allowance(self, survey: Sequence[DeviceReading]) -> int | None:
        return self._limit
