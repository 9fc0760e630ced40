"""The budgets of a tuning's devices, updated while other processes take and free memory.

The driver says how much is used, the workers how much of it their allocators hold. The rest is
*unaccounted*: other processes' memory, and our own context, which grows when kernels are first
loaded. A larger change is a tenant's.
"""

import time
from collections.abc import Sequence

from autotune.devices.budget import budget, budgets, context_bytes
from autotune.devices.group import DeviceGroup
from autotune.events import Emit, Notice
from autotune.readings import DeviceBudget, DeviceReading, Held, Measured
from autotune.units import format_bytes

CONTEXT_DRIFT = 64 * 2**20
"""Bytes that a context may move between two probes."""
CONTEXT_LOADING = 512 * 2**20
"""Bytes that it may grow in a worker's first probe, which loads kernels, cuBLAS and NCCL."""
EXIT_GRACE = 8
"""Quarters of a second for which the driver may still show a process that has ended."""


class Tenants:
    """The other processes on the devices, as far as memory shows them."""

    def __init__(self, group: DeviceGroup, target: float, emit: Emit) -> None:
        self.budgets: tuple[DeviceBudget, ...] = ()
        self._group = group
        self._target = target
        self._emit = emit
        self._unaccounted: tuple[int, ...] = ()
        self._growth = CONTEXT_LOADING

    def read_baseline(self) -> Sequence[DeviceReading]:
        """The devices before workers of ours start, and the budgets anew.

        Raises:
            DeviceError: others hold the target already.
        """
        baseline = self._without_us()
        self.budgets = budgets(baseline, self._target)
        return baseline

    def set_baseline(self, held: Sequence[Held]) -> None:
        """Notes what is unaccounted for after the workers have started: others' memory and contexts."""
        self._unaccounted, self._growth = self._group.unaccounted(held), CONTEXT_LOADING

    def update_budgets(self, held: Sequence[Held]) -> bool:
        """Updates the budgets to what tenants took or freed since the last call; whether they did.

        Raises:
            DeviceError: they hold the target now.
        """
        now = self._group.unaccounted(held)
        moves = moved(self._unaccounted, now, growth=self._growth)
        self._unaccounted = now
        if not any(moves):
            return False
        changed = []
        for device, change in zip(self.budgets, moves, strict=True):
            if change:
                verb = "took" if change > 0 else "freed"
                text = f"{device.name}: a tenant {verb} {format_bytes(abs(change))}"
                self._emit(Notice(text=text))
            others = max(0, device.others + change)
            changed.append(budget(device, others, self._target))
        self.budgets = tuple(changed)
        return True

    def was_disturbed(
        self, held: Sequence[Held], highest: Sequence[int], measured: Sequence[Measured]
    ) -> bool:
        """Whether a tenant took or freed memory during the probe that has just ended."""
        if not self._unaccounted:
            return False
        if self.update_budgets(held):
            return True
        growth, self._growth = self._growth, CONTEXT_DRIFT
        ours = [device.context + (device.reserved or 0) for device in measured]
        others = [device.others for device in self.budgets]
        return passed_through(highest, ours, others, growth=growth)

    def changed_since_start(self) -> bool:
        """Whether tenants' memory differs from the budgets'; call it after our workers have ended."""
        if not self._unaccounted:
            return False
        pairs = zip(self._without_us(), self.budgets, strict=True)
        return any(abs(reading.used - before.others) > CONTEXT_DRIFT for reading, before in pairs)

    def hard_limits(self, world_size: int) -> list[int | None]:
        """By rank, the bytes at which its own allocations must fail, its context subtracted.

        Ranks that share a device each get the whole limit; the sampler watches their sum.
        """
        return [
            None if device.hard_limit is None else max(0, device.hard_limit - context)
            for device, context in self._of_ranks(world_size)
        ]

    def headroom(self, world_size: int) -> list[int]:
        """By rank, the bytes that its own allocations may take of the budget."""
        sharing = world_size // len(self.budgets)
        return [
            max(0, device.budget - context) // sharing
            for device, context in self._of_ranks(world_size)
        ]

    def _of_ranks(self, world_size: int) -> list[tuple[DeviceBudget, int]]:
        """Each rank's device, and what our context takes of it."""
        unaccounted = self._unaccounted or [device.others for device in self.budgets]
        devices = [
            (device, context_bytes(now, device.others))
            for device, now in zip(self.budgets, unaccounted, strict=True)
        ]
        return [devices[device_of(rank, world_size, devices)] for rank in range(world_size)]

    def _without_us(self) -> Sequence[DeviceReading]:
        """The devices after the driver has removed our processes, which have just ended."""
        for _ in range(EXIT_GRACE if self.budgets and self._group.kind == "cuda" else 0):
            baseline = self._group.read_baseline()
            pairs = zip(baseline, self.budgets, strict=True)
            if all(reading.used <= before.others + CONTEXT_DRIFT for reading, before in pairs):
                return baseline
            time.sleep(0.25)
        return self._group.read_baseline()


def device_of(rank: int, world_size: int, devices: Sequence[object]) -> int:
    """The index of a rank's device: its own, or the one that all share."""
    return rank * len(devices) // world_size


def moved(before: Sequence[int], now: Sequence[int], *, growth: int) -> tuple[int, ...]:
    """Bytes that tenants took (below 0: freed), by device; 0 for what a context's `growth` explains."""
    changes = [new - old for old, new in zip(before, now, strict=True)]
    return tuple(change if change > growth or change < -CONTEXT_DRIFT else 0 for change in changes)


def passed_through(
    sampled: Sequence[int], exact: Sequence[int], others: Sequence[int], *, growth: int
) -> bool:
    """Whether a tenant held memory for a while during the probe.

    `sampled` is the driver's highest reading, `exact` our own peak by the allocator, with the
    context: a sample far above it is not ours.
    """
    pairs = zip(sampled, exact, others, strict=True)
    return any(seen - ours - rest > growth for seen, ours, rest in pairs)
