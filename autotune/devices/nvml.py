"""The NVIDIA driver: which GPUs there are, and a reading of one of them.

Memory is that of all processes. A container sees the host's process ids, so a process's share comes
from a baseline and not from the driver.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Self

import pynvml

from autotune.errors import DeviceError, named
from autotune.readings import DeviceReading

Clock = Callable[[], float]

VITALS_SECONDS = 1.0
"""Utilization, temperature and power are asked for at most this often; memory every time."""
MOST_MEMORY = 2**50
"""Bytes that a process may be said to hold; more is no answer."""


class NoDriver(DeviceError):
    """The machine has no NVIDIA driver, as most have none."""


@dataclass(slots=True, kw_only=True, eq=False)
class NvmlDevice:
    """One GPU, or one MIG slice of a GPU.

    A GPU that the driver lists but cannot open is kept: `uuid` and `name` are `GPU` and its index, and
    reading it raises.
    """

    index: int
    """The driver's; a slice has its GPU's."""
    uuid: str
    name: str
    clock: Clock
    handle: object = None
    failure: Exception | None = None
    """Why the driver cannot open it."""
    _memory_version: int | None = field(default=pynvml.nvmlMemory_v2, init=False)
    _vitals: dict[str, float | None] = field(default_factory=dict, init=False)
    _vitals_at: float = field(default=-math.inf, init=False)

    def read(self) -> DeviceReading:
        """Memory now, the rest at most a second old.

        Raises:
            DeviceError: the GPU is lost, not readable by this user or without memory of its own, or
                the driver is closed.
        """
        if self.failure is not None:
            raise _refusal(self.name, self.failure) from self.failure
        try:
            total, free = self._memory()
        except pynvml.NVMLError as error:
            raise _refusal(f"GPU {self.index} ({self.name})", error) from error
        if not 0 <= free <= total or total == 0:
            raise DeviceError(
                f"GPU {self.index} ({self.name}) reports {free} free of {total} bytes of memory, "
                "which cannot be",
                "check nvidia-smi",
            )
        now = self.clock()
        if now - self._vitals_at >= VITALS_SECONDS:
            self._vitals, self._vitals_at = _read_vitals(self.handle), now
        return DeviceReading(
            device=self.uuid, name=self.name, total=total, used=total - free, **self._vitals
        )

    def processes(self) -> dict[int, int] | None:
        """Bytes that each computing process holds, by process id; None where the driver does not say.

        To show, never for a budget: WSL2 gives no amounts, a container the host's process ids, and a
        call takes milliseconds under a driver-wide lock.
        """
        try:
            running = pynvml.nvmlDeviceGetComputeRunningProcesses_v3(self.handle)
        except pynvml.NVMLError:
            return None
        held: dict[int, int] = {}
        for process in running:
            # 2⁶⁴ − 1 in the driver's words is None here
            if process.usedGpuMemory is None or process.usedGpuMemory > MOST_MEMORY:
                return None
            held[process.pid] = held.get(process.pid, 0) + process.usedGpuMemory
        return held

    def slices(self) -> "tuple[NvmlDevice, ...]":
        """The MIG devices that this GPU is cut into; none where MIG is off or unknown."""
        if self.failure is not None:
            return ()
        try:
            slots = pynvml.nvmlDeviceGetMaxMigDeviceCount(self.handle)
        except pynvml.NVMLError:
            return ()
        found = []
        for slot in range(slots):
            with suppress(pynvml.NVMLError):  # most often NotFound: an empty slot
                handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(self.handle, slot)
                found.append(_identify(self.index, handle, self.clock))
        return tuple(found)

    def _memory(self) -> tuple[int, int]:
        # v1 counts the driver's own reserve as used (gpustat#141), v2 does not, and old drivers
        # and WSL (nvitop#30) know only v1. Total and free are the same in both, so both do.
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(self.handle, version=self._memory_version)
        except (
            pynvml.NVMLError_FunctionNotFound,
            pynvml.NVMLError_InvalidArgument,
            pynvml.NVMLError_ArgumentVersionMismatch,
            pynvml.NVMLError_Unknown,
        ):
            if self._memory_version is None:
                raise
            memory = pynvml.nvmlDeviceGetMemoryInfo(self.handle)
            self._memory_version = None
        return int(memory.total), int(memory.free)


class Nvml(ExitStack):
    """The driver, held open: its first start takes seconds per GPU without persistence mode.

    Stop every thread that reads before `close`, and start processes by spawn, never by fork.
    """

    driver_version: str | None
    """None where the driver does not say."""
    devices: tuple[NvmlDevice, ...]
    """In the driver's order, the broken ones included."""

    @classmethod
    def open(cls, clock: Clock = time.monotonic) -> Self:
        """Start the driver's library and list its GPUs.

        Raises:
            NoDriver: there is no driver's library.
            DeviceError: the driver does not start.
        """
        nvml = cls()
        try:
            pynvml.nvmlInit()
            nvml.callback(_shut_down)
            nvml.driver_version = _text(pynvml.nvmlSystemGetDriverVersion)
            nvml.devices = tuple(_open(i, clock) for i in range(pynvml.nvmlDeviceGetCount()))
        except pynvml.NVMLError as error:
            nvml.close()
            is_absent = isinstance(error, pynvml.NVMLError_LibraryNotFound)
            raise (NoDriver if is_absent else DeviceError)(
                f"no NVIDIA driver answers ({_said(error)})",
                "use --device cpu, or check nvidia-smi",
            ) from error
        return nvml


def _shut_down() -> None:
    with suppress(pynvml.NVMLError):  # the driver is gone: nothing is left to release
        pynvml.nvmlShutdown()


def visible(nvml: Nvml, environ: Mapping[str, str]) -> tuple[NvmlDevice, ...]:
    """The devices that CUDA shows to a process with this environment, in CUDA's order.

    CUDA's rules for CUDA_VISIBLE_DEVICES: unset shows all. Else it lists indices, or UUIDs or their
    unambiguous beginnings. The first entry that is invalid or of the other kind ends the list. A
    device named twice empties it. Of MIG slices only the first counts.
    https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/environment-variables.html

    An index is the driver's own (PCI order). CUDA uses the same order with
    CUDA_DEVICE_ORDER=PCI_BUS_ID, which workers are started with.
    """
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return nvml.devices
    entries = [entry.strip() for entry in listed.split(",")]
    kind, devices = entries[0][:4], nvml.devices
    if kind == "MIG-":
        entries = entries[:1]
        devices = tuple(part for device in nvml.devices for part in device.slices())
    shown: list[NvmlDevice] = []
    for entry in entries:
        if kind in ("GPU-", "MIG-"):
            meant = [d for d in devices if entry.startswith(kind) and d.uuid.startswith(entry)]
        else:
            is_index = entry.isascii() and entry.isdecimal() and len(entry) < 10
            meant = [d for d in devices if is_index and d.index == int(entry)]
        if len(meant) != 1:
            break
        if meant[0] in shown:
            return ()
        shown.append(meant[0])
    return tuple(shown)


def _open(index: int, clock: Clock) -> NvmlDevice:
    try:
        return _identify(index, pynvml.nvmlDeviceGetHandleByIndex(index), clock)
    except pynvml.NVMLError as error:
        name = f"GPU {index}"
        return NvmlDevice(index=index, uuid=name, name=name, clock=clock, failure=error)


def _identify(index: int, handle: object, clock: Clock) -> NvmlDevice:
    """The device; raises NVMLError without a UUID, by which workers and memory are brought together."""
    uuid = _decoded(pynvml.nvmlDeviceGetUUID, handle) or f"GPU {index}"
    name = _text(pynvml.nvmlDeviceGetName, handle) or f"GPU {index}"
    return NvmlDevice(index=index, uuid=uuid, name=name, clock=clock, handle=handle)


def _text(ask: Callable[..., str], *arguments: object) -> str | None:
    """What the driver calls something; None where it does not say."""
    with suppress(pynvml.NVMLError):
        return _decoded(ask, *arguments)
    return None


def _decoded(ask: Callable[..., str], *arguments: object) -> str:
    """The answer as text on one line; bytes that are not UTF-8 are shown as code."""
    try:
        return named(ask(*arguments))
    except UnicodeDecodeError as error:  # of the binding, which keeps the driver's bytes here
        return named(error.object.decode(errors="backslashreplace"))


def _said(error: Exception) -> str:
    return _decoded(lambda: str(error))


def _read_vitals(handle: object) -> dict[str, float | None]:
    """Fields of `DeviceReading`; None for what the driver does not tell (utilization under MIG)."""
    questions: dict[str, Callable[[], float]] = {
        "utilization": lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
        "temperature": lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        "power": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,  # given in milliwatts
    }
    vitals: dict[str, float | None] = dict.fromkeys(questions)
    for name, ask in questions.items():
        with suppress(pynvml.NVMLError):
            vitals[name] = float(ask())
    return vitals


def _refusal(device: str, error: Exception) -> DeviceError:
    """What happened to a device, and what to do."""
    match error:
        case pynvml.NVMLError_NotSupported():
            return DeviceError(
                f"{device} reports no memory of its own: it shares the host's (unified memory), so "
                "no VRAM target can be held on it",
                "use --device cpu",
            )
        case pynvml.NVMLError_GpuIsLost():
            return DeviceError(
                f"{device} is lost: it fell off the bus or stopped answering, and most often only "
                "a restart of the machine brings it back (dmesg shows why, as an Xid)",
                "until then, hide it with CUDA_VISIBLE_DEVICES",
            )
        case pynvml.NVMLError_NoPermission():
            return DeviceError(
                f"{device} may not be read by this user ({_said(error)})",
                "ask for access to /dev/nvidia*, or hide it with CUDA_VISIBLE_DEVICES",
            )
        case _:
            return DeviceError(
                f"{device} does not report its memory ({_said(error)})", "check nvidia-smi"
            )
