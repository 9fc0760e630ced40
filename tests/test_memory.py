"""Out of memory in all its words, and a worker's counters of host memory."""

import subprocess
import sys

import pytest

from autotune.memory import HostMemory, is_out_of_memory
from tests.toy_workload import MIB, ROOT, allocate

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


@pytest.mark.parametrize("text", SAID)
def test_what_allocators_say_is_out_of_memory(text: str) -> None:
    """Where an error has no type of its own, its words must do."""
    assert is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        type("OutOfMemoryError", (RuntimeError,), {})(),  # torch's, without torch
    ],
)
def test_out_of_memory_by_type_needs_no_words(error: BaseException) -> None:
    """Python's, the kernel's and torch's."""
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
    """A smaller size would not mend them."""
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
        "from autotune.memory import HostMemory, is_out_of_memory\n"
        "memory = HostMemory()\n"
        "memory.limit(memory.resident() + 2**29)\n"
        "try:\n"
        "    torch.zeros(2**30)\n"
        "except RuntimeError as error:\n"
        "    assert is_out_of_memory(error), error\n"
        "    print(torch.ones(2**20).sum().item())\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=100
    )

    assert (done.stdout, done.stderr) == (f"{2.0**20}\n", "")


def test_a_peak_of_the_host_is_since_its_reset() -> None:
    """What was held before counts only as far as it is still resident."""
    memory = HostMemory()
    allocate(128 * MIB).close()
    memory.settle()

    memory.reset_peak()
    before = memory.peak()
    allocate(64 * MIB).close()

    assert memory.peak() - before == pytest.approx(64 * MIB, abs=4 * MIB)
    assert memory.resident() - before < 4 * MIB
    assert (memory.device, memory.caches, memory.retries()) == ("cpu", False, 0)


def test_what_was_reserved_and_never_touched_fills_no_card() -> None:
    """Arrow keeps address space after reading Parquet; a card of 100 MiB more still has 100 MiB."""
    script = (
        "import mmap\n"
        "from autotune import process\n"
        "from autotune.memory import HostMemory\n"
        "MIB = 2**20\n"
        "reserved = mmap.mmap(-1, 1024 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "HostMemory().limit(process.resident('self') + 100 * MIB)\n"
        "fits = bytearray(50 * MIB)\n"
        "try:\n"
        "    bytearray(300 * MIB)\n"
        "except MemoryError:\n"
        "    print('refused')\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == "refused\n"
