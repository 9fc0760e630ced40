"""Memory and CPU time of processes: psutil, and what it does not give: a peak, its reset, a limit.

Knows nothing of devices, cgroups or what a process runs.
"""

import gc
import os
import re
import resource
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import psutil

from autotune.errors import DeviceError

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
PAGE = resource.getpagesize()
CHUNK = 16384


def contents(file: str | Path) -> bytes:
    """A file of the kernel, whole. `Path.read_bytes` takes three times as long as these two calls.

    Raises:
        OSError: it is gone, as when its process has ended, or closed to us.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(descriptor, CHUNK)
        while more := os.read(descriptor, CHUNK):  # the kernel may give a page at a time
            text += more
        return text
    finally:
        os.close(descriptor)


def field(text: bytes, key: bytes) -> int | None:
    """The number of at most 64 bits after `key` in the line that begins with it; None without one."""
    found = re.search(rb"^%s[ \t]+(\d{1,20})(?!\S)" % re.escape(key), text, re.MULTILINE)
    return None if found is None else int(found[1])


def _status(pid: int | str) -> bytes:
    try:
        return contents(STATUS if pid == "self" else f"/proc/{pid}/status")
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _bytes(status: bytes, key: bytes) -> int:
    """A figure of /proc/*/status; 0 where the process has ended or the kernel does not keep it."""
    return 1024 * (field(status, key) or 0)


def resident(pid: int | str = "self") -> int:
    """Resident bytes of a process, shared pages included; 0 once it is gone.

    Read here: `psutil.Process(pid).memory_info()` takes 39 µs and this 5, and the sampler asks for
    eight workers five times a second (one virtual x86 core, psutil 7.2.2, 2026-11).
    """
    try:
        return int(contents(f"/proc/{pid}/statm").split()[1]) * PAGE
    except (FileNotFoundError, ProcessLookupError):
        return 0


def anonymous(pid: int | str = "self") -> int:
    """Resident bytes of a process that no file backs, shared memory included; 0 once it is gone.

    How many pages of mapped files are resident, as of libraries and a token store, depends on the page
    cache, not on what the process does.
    """
    status = _status(pid)
    return max(0, _bytes(status, b"VmRSS:") - _bytes(status, b"RssFile:"))


def mapped(pid: int | str = "self") -> int:
    """Resident bytes of a process's mapped files; 0 once it is gone."""
    return _bytes(_status(pid), b"RssFile:")


def proportional(pid: int) -> int:
    """Bytes of a process, a page that n processes share counted as 1/n; 0 once it is gone.

    The sum over several processes counts each page once. A sum of resident bytes counts a page of
    a parent once more for each fork. For another user's process it is `resident`. The kernel walks
    all pages: 322 µs for 600 MiB (one virtual x86 core, Linux 6.18, 2026-11).
    """
    try:
        return int(psutil.Process(pid).memory_full_info().pss)
    except psutil.Error:
        return resident(pid)


def private() -> int:
    """Private writable bytes of this process, touched or only reserved: what `limit_data` counts."""
    return int(psutil.Process().memory_info().data)


def peak_anonymous(mapped_before: int) -> int:
    """Highest `anonymous` of this process since `reset_peak`, which found `mapped_before` bytes mapped.

    The kernel keeps a peak of all resident pages (VmHWM; `ru_maxrss` survives fork and exec and then
    shows the parent's). The most that was mapped is taken from it. In a step that maps more files, as a
    first step does, the peak may have come before: it then reads too low by what was mapped since.

    Raises:
        DeviceError: the kernel keeps no such number.
    """
    status = _status("self")
    if field(status, b"VmHWM:") is None:
        raise DeviceError(
            f"{STATUS} shows no peak memory (VmHWM)", "run on Linux with a full /proc"
        )
    now = _bytes(status, b"RssFile:")
    return _bytes(status, b"VmHWM:") - max(mapped_before, now)


def cpu_seconds_of_families(pids: Iterable[int]) -> float:
    """Seconds of CPU of these children of this process and of all their living descendants.

    One look at the whole process table, whatever the number of children: 1.3 ms for 80 processes.
    """
    family, seconds = set(pids), 0.0
    for process in psutil.Process().children(recursive=True):  # a parent before its children
        with suppress(psutil.Error):  # it has ended meanwhile
            if process.pid in family or process.ppid() in family:
                family.add(process.pid)
                times = process.cpu_times()
                seconds += times.user + times.system
    return seconds


def reset_peak() -> None:
    """Lets `peak_anonymous` start again from what is resident now.

    Raises:
        DeviceError: the kernel or the container does not permit it.
    """
    try:
        CLEAR_REFS.write_text("5")
    except OSError as error:
        raise DeviceError(
            f"the peak memory of a process cannot be reset ({CLEAR_REFS}: {error.strerror})",
            "mount /proc writable in the container, or measure each size in a fresh process",
        ) from error


@contextmanager
def without_collection() -> Iterator[None]:
    """Turns garbage collection off in the block; later collections skip every object made by then.

    For imports: what torch and transformers define stays for good. They take 5.0 CPU seconds
    instead of 6.9, and each later `trim` 4 ms instead of 220 (one virtual x86 core, Python 3.11,
    torch 2.13, transformers 5.17, 2026-11).
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def trim() -> None:
    """Gives freed memory back to the kernel: glibc keeps it until asked."""
    gc.collect()
    if hasattr(psutil, "heap_trim"):  # psutil has none for musl, which keeps little
        psutil.heap_trim()


def limit_data(amount: int) -> Callable[[], None]:
    """Limits the private memory of this process and of those that it starts to `amount` bytes.

    Beyond it malloc fails (`MemoryError`; in torch a `RuntimeError` that says "can't allocate
    memory") and the process continues. RLIMIT_DATA counts private writable memory, which follows
    resident memory closely. RLIMIT_AS counts reserved addresses, of which CUDA reserves far more
    than there is memory. A hard limit below `amount` stays.

    Returns the function that restores the previous limit.
    """
    before = resource.getrlimit(resource.RLIMIT_DATA)
    hard_limit = before[1]
    soft = amount if hard_limit == resource.RLIM_INFINITY else min(amount, hard_limit)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard_limit))
    return partial(resource.setrlimit, resource.RLIMIT_DATA, before)
