"""Processes through /proc: memory now and at most, giving it back, a limit; children; CPU time.

Knows nothing of devices, cgroups or what is run. `proc` is a parameter for tests alone.
"""

import ctypes
import gc
import os
import resource
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from autotune.devices.kernel import contents, field
from autotune.errors import DeviceError

PROC = Path("/proc")


PAGE = resource.getpagesize()
TICKS = os.sysconf("SC_CLK_TCK")
"""The kernel's ticks in a second, in which /proc counts CPU time."""


def resident(pid: int | str, proc: Path = PROC) -> int:
    """Resident bytes of a process, pages that it shares with others included; 0 once it is gone."""
    try:
        return int(contents(f"{proc}/{pid}/statm").split()[1]) * PAGE
    except (FileNotFoundError, ProcessLookupError):
        return 0


def proportional(pid: int | str, proc: Path = PROC) -> int:
    """Bytes of a process, a page that n processes share counted as a nth; 0 once it is gone.

    Of several processes these add up to what they hold together, resident bytes do not: forked
    readers of one parent count it once each. Where it may not be read, `resident`. The kernel walks
    all pages for it: 322 µs against 7 for 600 MiB (one virtual x86 core, Linux 6.18, 2026-11).
    """
    try:
        kib = field(contents(f"{proc}/{pid}/smaps_rollup"), b"Pss:")
    except OSError:  # another user's, a kernel before 4.14, or the process is gone
        kib = None
    return resident(pid, proc) if kib is None else kib * 1024


def private(pid: int | str = "self", proc: Path = PROC) -> int:
    """Private writable bytes of a process, whether touched or only reserved: what `limit_data` counts."""
    return int(contents(f"{proc}/{pid}/statm").split()[5]) * PAGE


def peak_resident(pid: int | str = "self", proc: Path = PROC) -> int:
    """Highest resident bytes of a process since it started, or since its `reset_peak`.

    VmHWM, and not `ru_maxrss`: that one survives fork and exec, and shows the parent's peak.

    Raises:
        DeviceError: the process has ended, or the kernel keeps no such number.
    """
    file = proc / str(pid) / "status"
    try:
        kib = field(contents(file), b"VmHWM:")
    except (FileNotFoundError, ProcessLookupError):
        kib = None
    if kib is None:
        raise DeviceError(
            f"{file} shows no peak memory (VmHWM): the process has ended, or this kernel keeps "
            "none",
            "run on Linux with a full /proc",
        )
    return kib * 1024


def cpu_seconds(pid: int | str, proc: Path = PROC) -> float | None:
    """Seconds of CPU that all threads of a process have had, its children not; None once it is gone."""
    after_name = _stat(pid, proc)
    if not after_name:
        return None
    user, system = after_name[11:13]
    return (int(user) + int(system)) / TICKS


def cpu_seconds_of_families(pids: Iterable[int], proc: Path = PROC) -> float:
    """Seconds of CPU of these processes and of all their descendants that live."""
    families = ((pid, *descendants(pid, proc)) for pid in pids)
    return sum(cpu_seconds(pid, proc) or 0.0 for family in families for pid in family)


def descendants(pid: int, proc: Path = PROC) -> tuple[int, ...]:
    """The process ids of its children, theirs, and so on, nearest first.

    A process whose parent has ended belongs to init, so it is not found.
    """
    has_lists = Path(proc, str(pid), "task", str(pid), "children").exists()  # a kernel's option
    parents = {} if has_lists else _parents(proc)
    found = [pid]
    for parent in found:
        children = (
            _listed_children(parent, proc)
            if has_lists
            else [child for child, its_parent in parents.items() if its_parent == parent]
        )
        found += [child for child in children if child not in found]  # a number may be given again
    return tuple(found[1:])


def _listed_children(pid: int, proc: Path) -> list[int]:
    children: list[int] = []
    for file in Path(proc, str(pid), "task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            children += [int(child) for child in contents(file).split()]
    return children


def _parents(proc: Path) -> dict[int, int]:
    """Of each process, its parent."""
    entries = [int(entry.name) for entry in os.scandir(proc) if entry.name.isdecimal()]
    stats = ((pid, _stat(pid, proc)) for pid in entries)
    return {pid: int(after_name[1]) for pid, after_name in stats if after_name}


def _stat(pid: int | str, proc: Path) -> list[bytes]:
    """The words after the name, which may hold spaces and brackets itself; none once it is gone."""
    try:
        return contents(f"{proc}/{pid}/stat").rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


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
            f"the peak memory of a process cannot be reset ({file}: {error.strerror})",
            "mount /proc writable in the container, or measure each size in a fresh process",
        ) from error


def trim() -> None:
    """Give freed memory back to the kernel: glibc keeps it until asked; other libcs do not."""
    gc.collect()
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def limit_data(amount: int) -> int:
    """Refuse this process, and those that it starts, private memory beyond `amount` bytes.

    RLIMIT_DATA counts private writable memory, which follows resident memory closely: malloc then
    fails (`MemoryError`, and in torch a `RuntimeError` that says "can't allocate memory") and the
    process goes on. RLIMIT_AS counts reserved addresses, which do not follow it: CUDA reserves far
    more than there is, so it must never be used with CUDA. A hard limit below `amount` stays.

    Returns what was in force before, for `restore_data_limit`.
    """
    before, hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
    soft = amount if hard_limit == resource.RLIM_INFINITY else min(amount, hard_limit)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard_limit))
    return before


def restore_data_limit(before: int) -> None:
    """Put back what `limit_data` found, "no limit" included."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (before, hard_limit))
