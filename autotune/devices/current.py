"""The device that this process computes on, for tuning without workers."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from autotune.devices.allocator import CudaMemory, DeviceMemory, HostMemory, same_device
from autotune.devices.budget import budget, context_bytes
from autotune.devices.group import DeviceGroup, GpuDevices, cpu_devices
from autotune.devices.host import HostMeter
from autotune.devices.nvml import Nvml, NvmlDevice
from autotune.errors import DeviceError
from autotune.readings import Measured, Report


class OwnDevice:
    """The budget of this process's device, and what the process holds of it.

    A CUDA context that exists already counts as others' memory, in the budget and in the peak. A tenant that
    grows meanwhile counts as ours, which errs towards smaller sizes.
    """

    def __init__(self, memory: DeviceMemory, cards: DeviceGroup, target: float) -> None:
        self.memory = memory
        self._group = cards
        self.is_rough = cards.is_rough
        memory.release_cached()
        (reading,) = cards.read_baseline()
        others = max(0, reading.used - memory.resident())
        self.budget = budget(reading, others, target)

    def context(self) -> int:
        """Bytes that this process holds outside its allocator, since the start."""
        if self._group.kind == "cpu":
            return 0
        (reading,) = self._group.read({})
        return context_bytes(reading.used - self.memory.resident(), self.budget.others)

    def static_bytes(self) -> int:
        return self.context() + self.memory.resident()

    def peak(self) -> int:
        """Bytes since `memory.reset_peak()`; call it before the allocator's cache is emptied."""
        return self.context() + self.memory.peak()

    def measure(self, report: Report) -> list[Measured]:
        """The peak of the probe that has ended; call it after the allocator's cache was emptied."""
        (reading,) = self._group.read({})
        return self._group.measure([report], [self.budget], [reading.used])

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Inside the block, allocations beyond the budget and a small margin fail."""
        assert self.budget.hard_limit is not None
        undo = self.memory.limit(max(0, self.budget.hard_limit - self.context()))
        try:
            yield
        finally:
            undo()


@contextmanager
def own_device(target: float, vram_limit: int | None) -> Iterator[OwnDevice]:
    """The device on which this process holds memory now; a driver stays open until the block ends.

    Raises:
        DeviceError: it cannot be read, others hold the target already, there are several, or host RAM cannot
            hold the emulated card.
    """
    memory = _own_memory()
    if isinstance(memory, CudaMemory):
        with Nvml.open() as nvml:
            card = card_of(nvml, memory.device)
            yield OwnDevice(memory, GpuDevices([card], vram_limit), target)
            return
    yield OwnDevice(memory, cpu_devices(HostMeter(), vram_limit, 1), target)


def _own_memory() -> DeviceMemory:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return HostMemory()
    held = [i for i in range(torch.cuda.device_count()) if torch.cuda.memory_reserved(i)]
    if not held:
        return HostMemory()
    if held != [torch.cuda.current_device()]:
        cards = ", ".join(f"cuda:{i}" for i in held)
        raise DeviceError(
            f"this process holds memory on {cards}, and the current device is "
            f"cuda:{torch.cuda.current_device()}",
            "use one card, and call torch.cuda.set_device first",
        )
    return CudaMemory()


def card_of(nvml: Nvml, uuid: str) -> NvmlDevice:
    """The card, or the MIG slice, of that UUID."""
    slices = (part for device in nvml.devices for part in device.slices())
    for device in (*nvml.devices, *slices):
        if same_device(device.uuid, uuid):
            return device
    listed = ", ".join(device.uuid for device in nvml.devices) or "none"
    raise DeviceError(
        f"the driver lists no card {uuid}, only {listed}", "check CUDA_VISIBLE_DEVICES"
    )
