"""A process's own memory on its device: the counters that a probe reads between its phases.

`HostMemory` counts a process's anonymous pages, for a CPU. `CudaMemory` counts what torch's caching allocator
reserves; the supervisor adds the context, which torch cannot see, from NVML.
"""

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import ClassVar, Protocol

from autotune.devices import processes
from autotune.readings import Outside

OOM_TEXTS = (
    "CUDA error: out of memory",
    "CUDA out of memory",
    "CUDA driver error: out of memory",  # expandable segments call the driver directly
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Cuda failure 2 'out of memory'",  # NCCL, which allocates outside torch
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
    "Cannot allocate memory",
)
"""Messages of allocation failures that have no exception type of their own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error, or one that it was raised from, is a failed allocation."""
    while True:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        if isinstance(error, RuntimeError | OSError) and any(t in str(error) for t in OOM_TEXTS):
            return True
        cause = error.__cause__ or error.__context__
        if cause is None:
            return False
        error = cause


def same_device(one: str, other: str) -> bool:
    """Whether two identifiers, of torch, NVML or a user, name one device.

    Torch writes no prefix `GPU-` or `MIG-`. A slice of a driver before 470 is `MIG-GPU-<card>/3/0`, and
    torch knows only its card: an identifier without a slice matches every slice.
    """
    (card, _, part), (other_card, _, other_part) = (
        re.sub(r"^(mig-)?(gpu-)?", "", text.lower()).partition("/") for text in (one, other)
    )
    return card == other_card and (part == other_part or not part or not other_part)


class DeviceMemory(Protocol):
    """Bytes that this process holds on its device."""

    device: str
    """The card's UUID, `cpu` for the host; compare by `same_device`: torch does not tell a MIG
    slice from a card, so here it begins with `GPU-` where NVML says `MIG-`."""
    caches: bool
    """Whether freed memory stays counted; then only the first step shows the peak of each phase."""

    def release_cached(self) -> None:
        """Gives back what no tensor holds."""

    def reset_peak(self) -> None: ...
    def resident(self) -> int:
        """What the device cannot give to others now: on a card, tensors and torch's cache."""

    def peak(self) -> int:
        """The highest `resident` since `reset_peak`."""

    def allocated(self) -> int:
        """What tensors hold now; on the host, where nothing tells, `resident`."""

    def peak_allocated(self) -> int:
        """The highest `allocated` since `reset_peak`."""

    def retries(self) -> int:
        """Allocations that succeeded only after a flush of the cache; above 0 the allocator thrashes."""

    def synchronize(self) -> None:
        """Returns when the device has done all that was asked of it."""

    def outside(self) -> Outside:
        """What this process holds of the host beside it; zeros for a GPU, whose driver shows it."""

    def limit(self, amount: int) -> Callable[[], None]:
        """Makes allocations beyond `amount` bytes in this process fail; returns the function that undoes it."""


class HostMemory:
    """Anonymous memory of this process, less that of its libraries; nothing tells tensors from the rest.

    Pages of mapped files do not count: they come and go with the page cache. Libraries do not count
    either once `exclude_libraries` was called: a CUDA build of torch holds 120 MiB more than a CPU
    build (2.11 and 2.13, after import). Both are told by `outside`.
    """

    device = "cpu"
    caches = False
    libraries: ClassVar[int] = 0
    """Bytes that the libraries of this process hold."""
    tell: ClassVar[Callable[[int], object]] = staticmethod(lambda libraries: None)
    """Called with `libraries` when they change: a worker's supervisor subtracts them too."""
    release_cached = staticmethod(processes.trim)

    def __init__(self) -> None:
        self._mapped = 0
        """Bytes of mapped files when the peak was last reset."""

    @classmethod
    def exclude_libraries(cls) -> int:
        """From now on only what this process holds beyond this moment counts; returns the bytes until now."""
        processes.trim()
        cls._set_libraries(processes.anonymous())
        return cls.libraries

    @classmethod
    @contextmanager
    def excluding(cls) -> Iterator[None]:
        """Counts what the block leaves behind as the libraries'.

        Tokenising leaves tables, threads and pieces of Python's heap: 18 MiB (tokenizers 0.22, the bundled
        rows). A run that finds its tokens in the cache has none of it.
        """
        processes.trim()
        before = processes.anonymous()
        yield
        processes.trim()
        cls._set_libraries(cls.libraries + max(0, processes.anonymous() - before))

    @classmethod
    def _set_libraries(cls, amount: int) -> None:
        cls.libraries = amount
        cls.tell(amount)

    def reset_peak(self) -> None:
        processes.reset_peak()
        self._mapped = processes.mapped()

    def resident(self) -> int:
        return max(0, processes.anonymous() - self.libraries)

    def peak(self) -> int:
        """As `DeviceMemory.peak`; see `processes.peak_anonymous`."""
        return max(self.resident(), processes.peak_anonymous(self._mapped) - self.libraries)

    allocated, peak_allocated = resident, peak

    def outside(self) -> Outside:
        return Outside(libraries=self.libraries, mapped=processes.mapped())

    def retries(self) -> int:
        return 0

    def synchronize(self) -> None:
        return

    def limit(self, amount: int) -> Callable[[], None]:
        """As `DeviceMemory.limit`; memory that is reserved but untouched, as by Arrow, does not count."""
        return processes.limit_data(processes.private() + max(0, amount - self.resident()))


class CudaMemory:
    """What torch reserves on the current CUDA device."""

    caches = True

    def __init__(self) -> None:
        import torch

        self._cuda = cuda = torch.cuda
        self._properties = cuda.get_device_properties(cuda.current_device())
        uuid = str(self._properties.uuid)
        self.device = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        self.synchronize = cuda.synchronize
        self.reset_peak = cuda.reset_peak_memory_stats
        self.resident, self.peak = cuda.memory_reserved, cuda.max_memory_reserved
        self.allocated, self.peak_allocated = cuda.memory_allocated, cuda.max_memory_allocated

    def release_cached(self) -> None:
        gc.collect()
        self._cuda.synchronize()
        self._cuda.empty_cache()

    def outside(self) -> Outside:
        return Outside()

    def retries(self) -> int:
        return int(self._cuda.memory_stats().get("num_alloc_retries", 0))

    def limit(self, amount: int) -> Callable[[], None]:
        before = self._cuda.get_per_process_memory_fraction()
        share = min(1.0, amount / self._properties.total_memory)
        self._cuda.set_per_process_memory_fraction(share)
        return partial(self._cuda.set_per_process_memory_fraction, before)
