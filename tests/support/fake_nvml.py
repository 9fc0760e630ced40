"""A made-up NVIDIA driver under the real `pynvml` binding, so that the binding is tested too.

    with FakeDriver([FakeGpu(total=20 * 2**30, used=lambda: held)]):
        ...  # pynvml, in this process, sees this one GPU

`pynvml.nvmlLib` becomes an object whose attributes are C callbacks. Other processes do not see it.
"""

import ctypes
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace, TracebackType
from typing import Self

import pynvml

Return = int
"""NVML's return code; an answer that is `None` has succeeded."""
Answer = Callable[..., Return | None]
POINTER = ctypes.c_void_p
UINT = ctypes.c_uint


@dataclass(slots=True, kw_only=True)
class FakeGpu:
    """A GPU, or a MIG slice; a test may change it at any time."""

    name: str = "Fake GPU"
    uuid: str = "GPU-00000000-0000-0000-0000-000000000000"
    total: int = 20 * 2**30
    used: int | Callable[[], int] = 0
    """What processes hold, the driver's reserve not included; bytes."""
    reserved: int = 0
    utilization: int = 50
    """Percent."""
    temperature: int = 40
    power: int = 100_000
    """Milliwatts."""
    slices: tuple["FakeGpu | None", ...] = ()
    """MIG devices by slot; `None` is an empty slot."""
    processes: Mapping[int, int | None] = field(default_factory=dict)
    """Bytes by process id; `None` where the driver says "not available"."""
    broken: bool = False
    """Lost: still listed, but neither opened nor answering."""
    no_memory: bool = False
    no_v2: bool = False
    fails: Mapping[str, Return] = field(default_factory=dict)
    """What a function returns for this GPU instead of an answer, by the function's C name."""
    asked: list[str] = field(default_factory=list)
    """The functions that were called on it."""

    def failure(self, function: str) -> Return:
        self.asked.append(function)
        if self.broken:
            return int(pynvml.NVML_ERROR_GPU_IS_LOST)
        if function.startswith("nvmlDeviceGetMemoryInfo") and self.no_memory:
            return int(pynvml.NVML_ERROR_NOT_SUPPORTED)
        if function == "nvmlDeviceGetMemoryInfo_v2" and self.no_v2:
            return int(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        return self.fails.get(function, 0)

    def memory(self) -> tuple[int, int]:
        """Held by processes, and free."""
        used = self.used if isinstance(self.used, int) else self.used()
        return used, self.total - self.reserved - used


class FakeDriver:
    """The driver's library with these GPUs, in place inside the `with`.

    An exception inside a callback, as in a GPU's `used`, reads as "Unknown Error" to the caller
    and is raised when the `with` ends.
    """

    def __init__(
        self,
        gpus: Iterable[FakeGpu] = (),
        *,
        driver_version: str = "600.10",
        fails: Mapping[str, Return] | None = None,
        missing: Iterable[str] = (),
    ) -> None:
        self.gpus = list(gpus)
        self.driver_version = driver_version
        self.fails = dict(fails or {})
        """What a function returns whatever the GPU, by its C name."""
        self.opened = 0
        """How often it was initialized and not yet shut down."""
        self.errors: list[Exception] = []
        self._handles: list[FakeGpu] = []
        self._texts: list[ctypes.Array[ctypes.c_char]] = []
        self._library = SimpleNamespace(**self._functions())
        for name in missing:
            delattr(self._library, name)

    def __enter__(self) -> Self:
        self._real = pynvml.nvmlLib
        pynvml.nvmlLib = self._library  # not None, so the binding does not load the real one
        pynvml._nvmlGetFunctionPointer_cache.clear()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pynvml.nvmlLib = self._real
        pynvml._nvmlGetFunctionPointer_cache.clear()
        if error is None and self.errors:
            raise self.errors[0]

    def _functions(self) -> dict[str, Callable[..., object]]:
        device: dict[str, tuple[Answer, *tuple[type, ...]]] = {
            "nvmlDeviceGetUUID": (_text(lambda gpu: gpu.uuid), POINTER, UINT),
            "nvmlDeviceGetName": (_text(lambda gpu: gpu.name), POINTER, UINT),
            "nvmlDeviceGetMemoryInfo": (_memory_v1, POINTER),
            "nvmlDeviceGetMemoryInfo_v2": (_memory_v2, POINTER),
            "nvmlDeviceGetUtilizationRates": (_utilization, POINTER),
            "nvmlDeviceGetTemperature": (_temperature, UINT, POINTER),
            "nvmlDeviceGetPowerUsage": (_power, POINTER),
            "nvmlDeviceGetComputeRunningProcesses_v3": (_processes, POINTER, POINTER),
            "nvmlDeviceGetMaxMigDeviceCount": (_slots, POINTER),
            "nvmlDeviceGetMigDeviceHandleByIndex": (self._slice, UINT, POINTER),
        }
        driver: dict[str, tuple[Answer, *tuple[type, ...]]] = {
            "nvmlInit_v2": (self._open,),
            "nvmlInitWithFlags": (lambda flags: self._open(), UINT),
            "nvmlShutdown": (self._close,),
            "nvmlSystemGetDriverVersion": (self._version, POINTER, UINT),
            "nvmlDeviceGetCount_v2": (self._count, POINTER),
            "nvmlDeviceGetHandleByIndex_v2": (self._by_index, UINT, POINTER),
            "nvmlDeviceGetHandleByUUID": (self._by_uuid, ctypes.c_char_p, POINTER),
        }
        functions: dict[str, Callable[..., object]] = {
            "nvmlErrorString": ctypes.CFUNCTYPE(POINTER, ctypes.c_int)(self._error_string)
        }
        for name, (answer, *types) in driver.items():
            functions[name] = self._callback(name, answer, *types)
        for name, (answer, *types) in device.items():
            functions[name] = self._callback(name, self._on_gpu(name, answer), POINTER, *types)
        return functions

    def _callback(self, name: str, answer: Answer, *types: type) -> Callable[..., object]:
        def guarded(*arguments: object) -> Return:
            if not self.opened and not name.startswith("nvmlInit"):
                return int(pynvml.NVML_ERROR_UNINITIALIZED)
            try:
                return self.fails.get(name) or answer(*arguments) or 0
            except Exception as error:  # noqa: BLE001  what escapes a callback reads as success
                self.errors.append(error)
                return int(pynvml.NVML_ERROR_UNKNOWN)

        return ctypes.CFUNCTYPE(ctypes.c_int, *types)(guarded)

    def _on_gpu(self, name: str, answer: Answer) -> Answer:
        def on_gpu(handle: int | None, *arguments: object) -> Return | None:
            if handle is None:
                return int(pynvml.NVML_ERROR_INVALID_ARGUMENT)
            gpu = self._handles[handle - 1]
            return gpu.failure(name) or answer(gpu, *arguments)

        return on_gpu

    def _handle(self, gpu: FakeGpu, out: int) -> Return | None:
        if gpu.broken:
            return int(pynvml.NVML_ERROR_GPU_IS_LOST)
        self._handles.append(gpu)
        POINTER.from_address(out).value = len(self._handles)  # any number but 0
        return None

    def _open(self) -> None:
        self.opened += 1

    def _close(self) -> None:
        self.opened -= 1

    def _version(self, out: int, size: int) -> None:
        _write(out, size, self.driver_version)

    def _count(self, out: int) -> None:
        UINT.from_address(out).value = len(self.gpus)

    def _by_index(self, index: int, out: int) -> Return | None:
        if index >= len(self.gpus):
            return int(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return self._handle(self.gpus[index], out)

    def _by_uuid(self, uuid: bytes, out: int) -> Return | None:
        slices = (part for gpu in self.gpus for part in gpu.slices if part is not None)
        for gpu in (*self.gpus, *slices):
            if gpu.uuid.encode() == uuid:
                return self._handle(gpu, out)
        return int(pynvml.NVML_ERROR_NOT_FOUND)

    def _slice(self, gpu: FakeGpu, slot: int, out: int) -> Return | None:
        part = gpu.slices[slot]
        return int(pynvml.NVML_ERROR_NOT_FOUND) if part is None else self._handle(part, out)

    def _error_string(self, code: int) -> int:
        # An address, since a callback that returns c_char_p leaks and warns of it.
        self._texts.append(ctypes.create_string_buffer(f"fake error {code}".encode()))
        return ctypes.addressof(self._texts[-1])


def _write(out: int, size: int, text: str) -> None:
    written = text.encode()
    ctypes.memmove(out, ctypes.create_string_buffer(written), min(size, len(written) + 1))


def _text(of: Callable[[FakeGpu], str]) -> Callable[..., None]:
    return lambda gpu, out, size: _write(out, size, of(gpu))


def _memory_v1(gpu: FakeGpu, out: int) -> None:
    used, free = gpu.memory()
    memory = pynvml.c_nvmlMemory_t.from_address(out)
    memory.total, memory.free, memory.used = gpu.total, free, used + gpu.reserved


def _memory_v2(gpu: FakeGpu, out: int) -> Return | None:
    memory = pynvml.c_nvmlMemory_v2_t.from_address(out)
    if memory.version != pynvml.nvmlMemory_v2:
        return int(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)
    used, free = gpu.memory()
    memory.total, memory.free, memory.used, memory.reserved = gpu.total, free, used, gpu.reserved
    return None


def _utilization(gpu: FakeGpu, out: int) -> None:
    pynvml.c_nvmlUtilization_t.from_address(out).gpu = gpu.utilization


def _temperature(gpu: FakeGpu, sensor: int, out: int) -> None:
    UINT.from_address(out).value = gpu.temperature


def _power(gpu: FakeGpu, out: int) -> None:
    UINT.from_address(out).value = gpu.power


def _processes(gpu: FakeGpu, count: int, out: int | None) -> Return | None:
    room = UINT.from_address(count)
    space, room.value = room.value, len(gpu.processes)
    if space < len(gpu.processes):
        return int(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
    if out is None:
        return None
    entries = (pynvml.c_nvmlProcessInfo_v3_t * space).from_address(out)
    for entry, (pid, held) in zip(entries, gpu.processes.items(), strict=False):
        entry.pid, entry.usedGpuMemory = pid, 2**64 - 1 if held is None else held
    return None


def _slots(gpu: FakeGpu, out: int) -> None:
    UINT.from_address(out).value = len(gpu.slices)
