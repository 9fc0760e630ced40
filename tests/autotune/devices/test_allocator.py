"""Out of memory in all its words, and a worker's counters of its own memory."""

import resource
import sys
from types import SimpleNamespace

import pytest

from autotune.devices.allocator import (
    CudaMemory,
    DeviceMemory,
    HostMemory,
    is_out_of_memory,
    same_device,
)
from tests.support.processes import printed_by
from tests.support.toy_workload import MIB, allocate

SAID = [
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.6 GiB",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "CUDA driver error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "NCCL error: unhandled cuda error\nCuda failure 2 'out of memory'",
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)",
    "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried",
    "std::bad_alloc",
    "unable to mmap 4096 bytes from file </torch_7>: Cannot allocate memory (12)",
]


@pytest.mark.parametrize(
    "error",
    [
        *map(RuntimeError, SAID),
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        type("OutOfMemoryError", (RuntimeError,), {})(),  # torch's, without torch
    ],
)
def test_what_allocators_say_is_out_of_memory(error: BaseException) -> None:
    """Where an error has no type of its own, its words must do; a type needs none."""
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED"),
        RuntimeError(""),
        OSError(28, "No space left on device"),
        ValueError("CUDA out of memory"),  # words of a user, not of an allocator
        KeyboardInterrupt(),
    ],
)
def test_other_failures_are_not(error: BaseException) -> None:
    """A smaller size would not fix them."""
    assert not is_out_of_memory(error)


def test_an_error_that_was_raised_from_out_of_memory_is_one() -> None:
    """Libraries wrap what they catch; an error met while handling one counts as well."""
    wrapped, context = ValueError("the step failed"), ValueError("so did cleaning up")
    wrapped.__cause__ = RuntimeError("CUDA out of memory")
    context.__context__ = wrapped

    assert is_out_of_memory(wrapped)
    assert is_out_of_memory(context)


def test_torch_beyond_a_limit_is_out_of_memory_and_the_process_goes_on() -> None:
    """What the CPU allocator really says, in this version of torch."""
    script = (
        "import torch\n"
        "from autotune.devices.allocator import HostMemory, is_out_of_memory\n"
        "memory = HostMemory()\n"
        "memory.limit(memory.resident() + 2**29)\n"
        "try:\n"
        "    torch.zeros(2**30)\n"
        "except RuntimeError as error:\n"
        "    assert is_out_of_memory(error), error\n"
        "    print(torch.ones(2**20).sum().item())\n"
    )

    assert printed_by(script) == f"{2.0**20}\n"


def test_a_peak_of_the_host_is_since_its_reset() -> None:
    """What was held before counts only as far as it is still resident."""
    memory = HostMemory()
    allocate(128 * MIB).close()
    memory.release_cached()

    memory.reset_peak()
    before = memory.peak()
    allocate(64 * MIB).close()

    assert memory.peak() - before == pytest.approx(64 * MIB, abs=4 * MIB)
    assert memory.resident() - before < 4 * MIB
    assert (memory.device, memory.caches, memory.retries()) == ("cpu", False, 0)


def test_libraries_do_not_count_once_they_are_loaded() -> None:
    """They hold more in a CUDA build of torch; of a card neither build takes anything."""
    script = (
        "from autotune.devices.allocator import HostMemory\n"
        "from autotune.devices.processes import anonymous\n"
        "from tests.support.toy_workload import MIB, allocate\n"
        "memory = HostMemory()\n"
        "library = allocate(64 * MIB)\n"
        "told = HostMemory.exclude_libraries()\n"
        "memory.reset_peak()\n"
        "model = allocate(32 * MIB)\n"
        "print(told // MIB >= 64, memory.outside().libraries == told, memory.outside().mapped > 0)\n"
        "print(round(memory.resident() / (8 * MIB)), round(memory.peak() / (8 * MIB)))\n"
        "undo = memory.limit(64 * MIB)\n"
        "try:\n"
        "    bytearray(48 * MIB)\n"
        "except MemoryError:\n"
        "    print('refused')\n"
    )

    assert printed_by(script) == "True True True\n4 4\nrefused\n"


def test_what_was_reserved_and_never_touched_fills_no_card() -> None:
    """Arrow keeps address space after reading Parquet; a card of 100 MiB more still has 100 MiB."""
    script = (
        "import mmap\n"
        "from autotune.devices import processes\n"
        "from autotune.devices.allocator import HostMemory\n"
        "MIB = 2**20\n"
        "reserved = mmap.mmap(-1, 1024 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "HostMemory().limit(processes.resident('self') + 100 * MIB)\n"
        "fits = bytearray(50 * MIB)\n"
        "try:\n"
        "    bytearray(300 * MIB)\n"
        "except MemoryError:\n"
        "    print('refused')\n"
    )

    assert printed_by(script) == "refused\n"


def test_nothing_tells_tensors_from_other_pages_on_the_host() -> None:
    """What is resident counts as allocated, now and at most."""
    memory = HostMemory()
    memory.reset_peak()

    block = allocate(64 * MIB)
    now, resident = memory.allocated(), memory.resident()
    block.close()

    assert now == pytest.approx(resident, abs=2 * MIB)
    assert memory.peak_allocated() >= now - 2 * MIB
    assert memory.allocated() < now - 48 * MIB


@pytest.mark.parametrize("soft", [2**40, resource.RLIM_INFINITY])
def test_a_limit_that_is_taken_off_leaves_what_was_before(soft: int) -> None:
    """No limit is a limit like any other; a second one in between counts for nothing."""
    script = (
        "import resource\n"
        "from autotune.devices.allocator import HostMemory\n"
        "soft = lambda: resource.getrlimit(resource.RLIMIT_DATA)[0]\n"
        f"resource.setrlimit(resource.RLIMIT_DATA, ({soft}, resource.RLIM_INFINITY))\n"
        "memory = HostMemory()\n"
        f"undo = memory.limit(memory.resident() + {128 * MIB})\n"
        f"memory.limit(memory.resident() + {256 * MIB}); limited = soft()\n"
        "undo()\n"
        f"block = bytearray({512 * MIB})\n"
        "print(soft(), 0 < limited < 2**40)\n"
    )

    assert printed_by(script) == f"{soft} True\n"


UUID = "8d8f5c2e-0f2b-11ef-9c1a-3f5a1c2d4e6f"


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (UUID, f"GPU-{UUID}", True),
        (UUID, f"MIG-{UUID}", True),
        (f"GPU-{UUID}", f"MIG-{UUID}", True),  # what `CudaMemory` says of a slice
        (UUID.upper(), f"MIG-{UUID}", True),
        (UUID, f"MIG-GPU-{UUID}/3/0", True),
        (f"MIG-GPU-{UUID}/3/0", f"mig-gpu-{UUID}/3/0", True),
        ("cpu:1", "cpu:1", True),
        (f"GPU-{UUID}", f"GPU-{UUID[:-1]}0", False),
        (f"MIG-GPU-{UUID}/3/0", f"MIG-GPU-{UUID}/4/0", False),  # two slices of one card
        (UUID, UUID[:8], False),
        ("cpu:0", "cpu:1", False),
    ],
)
def test_one_device_is_the_same_in_every_spelling_and_two_never_are(
    one: str, other: str, is_same: bool
) -> None:
    """Torch's name of a MIG slice has no prefix, NVML's has; a beginning names none."""
    assert same_device(one, other) is is_same
    assert same_device(other, one) is is_same


class FakeCuda:
    """`torch.cuda` of one card: amounts that a test sets, and what it was asked to do."""

    def __init__(self, uuid: str = UUID) -> None:
        self.properties = SimpleNamespace(uuid=uuid, total_memory=1000)
        self.asked: list[str] = []
        self.fraction = 1.0
        self.stats = {"num_alloc_retries": 2}
        self.current_device = lambda: 0
        self.get_device_properties = lambda index: self.properties
        self.memory_allocated, self.max_memory_allocated = lambda: 100, lambda: 200
        self.memory_reserved, self.max_memory_reserved = lambda: 300, lambda: 400
        self.memory_stats = lambda: self.stats
        self.synchronize = lambda: self.asked.append("synchronize")
        self.empty_cache = lambda: self.asked.append("empty_cache")
        self.reset_peak_memory_stats = lambda: self.asked.append("reset_peak_memory_stats")
        self.get_per_process_memory_fraction = lambda: self.fraction

    def set_per_process_memory_fraction(self, fraction: float) -> None:
        self.fraction = fraction


def cuda_memory(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda) -> CudaMemory:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    return CudaMemory()


def test_a_card_tells_tensors_from_what_is_kept_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resident is the cache, allocated the tensors in it."""
    memory: DeviceMemory = cuda_memory(monkeypatch, FakeCuda())

    assert (memory.allocated(), memory.peak_allocated()) == (100, 200)
    assert (memory.resident(), memory.peak()) == (300, 400)
    assert (memory.caches, memory.retries()) == (True, 2)


def test_a_card_that_has_computed_nothing_has_no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch then has no such key."""
    cuda = FakeCuda()
    cuda.stats = {}

    assert cuda_memory(monkeypatch, cuda).retries() == 0


def test_the_cache_is_emptied_when_the_card_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """And only then: a block still in use by a kernel stays."""
    cuda = FakeCuda()
    memory = cuda_memory(monkeypatch, cuda)

    memory.release_cached()
    memory.reset_peak()

    assert cuda.asked == ["synchronize", "empty_cache", "reset_peak_memory_stats"]


def test_a_limit_on_a_card_is_a_share_of_it_until_it_is_taken_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More than there is means all of it; the caller's own share is back afterwards."""
    cuda = FakeCuda()
    cuda.fraction = 0.4
    memory = cuda_memory(monkeypatch, cuda)

    undo = memory.limit(250)
    fractions = [cuda.fraction]
    memory.limit(3000)
    fractions.append(cuda.fraction)
    undo()

    assert [*fractions, cuda.fraction] == [0.25, 1.0, 0.4]


@pytest.mark.parametrize("listed", [f"GPU-{UUID}", f"MIG-{UUID}"])
def test_a_card_is_known_by_the_drivers_name_for_it(
    monkeypatch: pytest.MonkeyPatch, listed: str
) -> None:
    """Whether torch gives a prefix or not, and whether it is a card or a slice of one."""
    names = [cuda_memory(monkeypatch, FakeCuda(uuid)).device for uuid in (UUID, listed)]

    assert names[1] == listed
    assert all(same_device(name, listed) for name in names)
