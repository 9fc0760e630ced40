"""The NVIDIA driver: which GPUs there are, and a reading of one of them.

Memory is that of all processes. A container sees the host's process ids, so a process's share comes
from a baseline and not from the driver.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import pynvml

from autotune.errors import DeviceError
from autotune.readings import DeviceReading

Clock = Callable[[], float]

VITALS_SECONDS = 1.0
"""Utilization, temperature and power are asked for at most this often; memory every time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """What a GPU tells besides its memory; `None` where it does not (utilization under MIG)."""

    utilization: float | None
    temperature: float | None
    power: float | None


class NvmlDevice:
    """One GPU, or one MIG slice of a GPU.

    A GPU that the driver lists but cannot open is kept: `error` says why, `uuid` and `name` are
    `GPU` and its index, and reading it raises.
    """

    def __init__(
        self,
        *,
        index: int,
        uuid: str,
        name: str,
        handle: object,
        failure: Exception | None,
        clock: Clock,
    ) -> None:
        self.index = index
        """The driver's; a slice has its GPU's."""
        self.uuid = uuid
        self.name = name
        self.error = None if failure is None else str(failure)
        self._failure = failure
        self._handle = handle
        self._clock = clock
        self._memory_version: int | None = pynvml.nvmlMemory_v2
        self._vitals: tuple[float, Vitals] | None = None

    def __repr__(self) -> str:
        return f"NvmlDevice(index={self.index}, uuid={self.uuid!r}, name={self.name!r})"

    def read(self) -> DeviceReading:
        """Memory now, the rest at most a second old.

        Raises:
            DeviceError: the GPU is lost, closed to this user or without memory of its own, or the
                driver is closed.
        """
        if self._failure is not None:
            raise DeviceError(_refusal(self.name, self._failure)) from self._failure
        try:
            total, free = self._memory()
        except pynvml.NVMLError as error:
            raise DeviceError(_refusal(f"GPU {self.index} ({self.name})", error)) from error
        vitals = self._fresh_vitals()
        return DeviceReading(
            device=self.uuid,
            name=self.name,
            total=total,
            used=total - free,
            utilization=vitals.utilization,
            temperature=vitals.temperature,
            power=vitals.power,
        )

    def processes(self) -> dict[int, int] | None:
        """Bytes that each computing process holds, by process id; None where the driver does not say.

        To show, never for a budget: WSL2 gives no amounts, a container the host's process ids, and a
        call takes milliseconds under a driver-wide lock.
        """
        try:
            running = pynvml.nvmlDeviceGetComputeRunningProcesses_v3(self._handle)
        except pynvml.NVMLError:
            return None
        held: dict[int, int] = {}
        for process in running:
            if process.usedGpuMemory is None:  # 2⁶⁴ − 1 in the driver's words
                return None
            held[process.pid] = held.get(process.pid, 0) + process.usedGpuMemory
        return held

    def slices(self) -> "tuple[NvmlDevice, ...]":
        """The MIG devices that this GPU is cut into; none where MIG is off or unknown."""
        if self._failure is not None:
            return ()
        try:
            slots = pynvml.nvmlDeviceGetMaxMigDeviceCount(self._handle)
        except pynvml.NVMLError:
            return ()
        found = []
        for slot in range(slots):
            with suppress(pynvml.NVMLError):  # most often NotFound: an empty slot
                handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(self._handle, slot)
                found.append(_identify(self.index, handle, self._clock))
        return tuple(found)

    def _memory(self) -> tuple[int, int]:
        # v1 counts the driver's own reserve as used (gpustat#141), v2 does not, and old drivers
        # and WSL (nvitop#30) know only v1. Total and free are the same in both, so both do.
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(self._handle, version=self._memory_version)
        except (
            pynvml.NVMLError_FunctionNotFound,
            pynvml.NVMLError_InvalidArgument,
            pynvml.NVMLError_ArgumentVersionMismatch,
            pynvml.NVMLError_Unknown,
        ):
            if self._memory_version is None:
                raise
            memory = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
            self._memory_version = None
        return int(memory.total), int(memory.free)

    def _fresh_vitals(self) -> Vitals:
        now = self._clock()
        if self._vitals is None or now - self._vitals[0] >= VITALS_SECONDS:
            self._vitals = now, _read_vitals(self._handle)
        return self._vitals[1]


class Nvml:
    """The driver, held open: its first start takes seconds per GPU without persistence mode.

    Stop every thread that reads before `close`, and start processes by spawn, never by fork.
    """

    def __init__(self, *, driver_version: str, devices: tuple[NvmlDevice, ...]) -> None:
        self.driver_version = driver_version
        self.devices = devices
        """In the driver's order, the broken ones included."""
        self._is_open = True

    @classmethod
    def open(cls, clock: Clock = time.monotonic) -> Self:
        """Start the driver's library and list its GPUs.

        Raises:
            DeviceError: there is no driver, or it does not start.
        """
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise _no_driver(error) from error
        try:
            return cls(
                driver_version=str(pynvml.nvmlSystemGetDriverVersion()),
                devices=tuple(_open(i, clock) for i in range(pynvml.nvmlDeviceGetCount())),
            )
        except pynvml.NVMLError as error:
            pynvml.nvmlShutdown()
            raise _no_driver(error) from error

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            with suppress(pynvml.NVMLError):  # the driver is gone: nothing is left to release
                pynvml.nvmlShutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def visible(nvml: Nvml, environ: Mapping[str, str]) -> tuple[NvmlDevice, ...]:
    """The devices that CUDA shows to a process with this environment, in CUDA's order.

    As CUDA reads CUDA_VISIBLE_DEVICES: unset, all; else indices, or UUIDs or unambiguous beginnings
    of them, up to the first entry that is invalid or of the other kind; a device named twice voids
    the list; of MIG slices only the first counts.
    https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/environment-variables.html

    An index is the driver's own (PCI order), which CUDA follows under
    CUDA_DEVICE_ORDER=PCI_BUS_ID: workers are started with that set.
    """
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return nvml.devices
    entries = [entry.strip() for entry in listed.split(",")]
    if entries[0].startswith("MIG-"):
        slices = (part for device in nvml.devices for part in device.slices())
        chosen = _starting_with(entries[0], slices)
        return () if chosen is None else (chosen,)
    by_uuid = entries[0].startswith("GPU-")
    shown: list[NvmlDevice] = []
    for entry in entries:
        device = _by_uuid(entry, nvml.devices) if by_uuid else _by_index(entry, nvml.devices)
        if device is None:
            break
        if device in shown:
            return ()
        shown.append(device)
    return tuple(shown)


def _by_index(entry: str, devices: tuple[NvmlDevice, ...]) -> NvmlDevice | None:
    is_index = entry.isascii() and entry.isdecimal() and int(entry) < len(devices)
    return devices[int(entry)] if is_index else None


def _by_uuid(entry: str, devices: tuple[NvmlDevice, ...]) -> NvmlDevice | None:
    return _starting_with(entry, devices) if entry.startswith("GPU-") else None


def _starting_with(prefix: str, devices: Iterable[NvmlDevice]) -> NvmlDevice | None:
    matches = [device for device in devices if device.uuid.startswith(prefix)]
    return matches[0] if len(matches) == 1 else None


def _open(index: int, clock: Clock) -> NvmlDevice:
    try:
        return _identify(index, pynvml.nvmlDeviceGetHandleByIndex(index), clock)
    except pynvml.NVMLError as error:
        name = f"GPU {index}"
        return NvmlDevice(
            index=index, uuid=name, name=name, handle=None, failure=error, clock=clock
        )


def _identify(index: int, handle: object, clock: Clock) -> NvmlDevice:
    return NvmlDevice(
        index=index,
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        name=str(pynvml.nvmlDeviceGetName(handle)),
        handle=handle,
        failure=None,
        clock=clock,
    )


def _read_vitals(handle: object) -> Vitals:
    utilization = _given(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    temperature = _given(
        lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
    )
    power = _given(lambda: pynvml.nvmlDeviceGetPowerUsage(handle))
    return Vitals(
        utilization=None if utilization is None else utilization / 100,
        temperature=temperature,
        power=None if power is None else power / 1000,  # the driver gives milliwatts
    )


def _given(ask: Callable[[], float]) -> float | None:
    try:
        return float(ask())
    except pynvml.NVMLError:
        return None


def _refusal(device: str, error: Exception) -> str:
    """What happened to a device, and what to do."""
    match error:
        case pynvml.NVMLError_NotSupported():
            return (
                f"{device} reports no memory of its own: it shares the host's (unified memory), so "
                f"no VRAM target can be held on it; use --device cpu"
            )
        case pynvml.NVMLError_GpuIsLost():
            return (
                f"{device} is lost: it fell off the bus or stopped answering, and most often only "
                f"a restart of the machine brings it back (dmesg shows why, as an Xid); until "
                f"then, hide it with CUDA_VISIBLE_DEVICES"
            )
        case pynvml.NVMLError_NoPermission():
            return (
                f"{device} may not be read by this user ({error}); ask for access to "
                f"/dev/nvidia*, or hide it with CUDA_VISIBLE_DEVICES"
            )
        case _:
            return f"{device} does not report its memory ({error}); check nvidia-smi"


def _no_driver(error: Exception) -> DeviceError:
    return DeviceError(
        f"no NVIDIA driver answers ({error})", "use --device cpu, or check nvidia-smi"
    )
