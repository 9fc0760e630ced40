"""One process's memory through /proc: how much, the highest so far, giving back, a limit.

Knows nothing of devices, cgroups or what is run. `proc` is a parameter for tests alone.
"""

import ctypes
import gc
import os
import resource
from pathlib import Path

from autotune.errors import DeviceError

PROC = Path("/proc")


def resident(pid: int | str, proc: Path = PROC) -> int:
    """Resident bytes of a process, pages that it shares with others included; 0 once it is gone."""
    try:
        pages = (proc / str(pid) / "statm").read_text().split()[1]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(pages) * resource.getpagesize()


def private(pid: int | str = "self", proc: Path = PROC) -> int:
    """Private writable bytes of a process, whether touched or only reserved: what `limit_data` counts."""
    return int((proc / str(pid) / "statm").read_text().split()[5]) * resource.getpagesize()


def peak_resident(pid: int | str = "self", proc: Path = PROC) -> int:
    """Highest resident bytes of a process since it started, or since its `reset_peak`.

    VmHWM, and not `ru_maxrss`: that one survives fork and exec, and shows the parent's peak.

    Raises:
        DeviceError: the process has ended, or the kernel keeps no such number.
    """
    file = proc / str(pid) / "status"
    try:
        lines = file.read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise DeviceError(
        f"{file} shows no peak memory (VmHWM): the process has ended, or this kernel keeps none; "
        f"run on Linux with a full /proc"
    )


def reset_peak(proc: Path = PROC) -> None:
    """Let this process's `peak_resident` start again from what is resident now.

    Raises:
        DeviceError: the kernel or the container does not permit it.
    """
    file = proc / "self" / "clear_refs"
    try:
        descriptor = os.open(file, os.O_WRONLY)
        try:
            os.write(descriptor, b"5")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DeviceError(
            f"the peak memory of a process cannot be reset ({file}: {error.strerror}); mount /proc "
            f"writable in the container, or measure each size in a fresh process"
        ) from error


def trim() -> None:
    """Give freed memory back to the kernel: glibc keeps it until asked; other libcs do not."""
    gc.collect()
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def limit_data(amount: int) -> None:
    """Refuse this process, and those that it starts, private memory beyond `amount` bytes.

    RLIMIT_DATA counts private writable memory, which follows resident memory closely: malloc then
    fails (`MemoryError`, and in torch a `RuntimeError` that says "can't allocate memory") and the
    process goes on. RLIMIT_AS counts reserved addresses, which do not follow it: CUDA reserves far
    more than there is, so it must never be used with CUDA. A hard limit below `amount` stays.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
