"""Processes: this one and its children."""

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from autotune.devices import processes
from autotune.devices.processes import (
    anonymous,
    cpu_seconds_of_families,
    mapped,
    peak_anonymous,
    proportional,
    reset_peak,
    resident,
    trim,
)
from autotune.errors import DeviceError
from tests.support.processes import deadline, printed_by
from tests.support.toy_workload import allocate

MIB = 2**20


def test_resident_memory_follows_what_is_held() -> None:
    """A block that is written counts, by process id and as `self`."""
    before = resident(os.getpid())

    block = b"x" * (64 * MIB)
    held = resident("self")

    assert len(block) == 64 * MIB
    assert held - before > 32 * MIB  # this process may give back other pages meanwhile


def test_a_process_that_is_gone_holds_nothing() -> None:
    """It may end between being listed and being read; a zombie has given its memory back."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    measures = (resident, anonymous, mapped, proportional)
    zombie = [measure(child.pid) for measure in measures]
    child.wait()

    assert zombie == [0, 0, 0, 0]
    assert [measure(child.pid) for measure in measures] == [0, 0, 0, 0]


@pytest.fixture
def large_file(tmp_path: Path) -> Path:
    """64 MiB on disk, as a library's code or a token store."""
    file = tmp_path / "code.so"
    with file.open("wb") as written:
        written.write(b"x" * (64 * MIB))
        os.fsync(written.fileno())
    return file


def test_a_mapped_file_is_no_anonymous_memory(large_file: Path) -> None:
    """Shared memory is, since nothing else holds its pages."""
    before, files_before = anonymous(), mapped()

    with large_file.open("rb") as opened:
        code = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    assert sum(code[:: mmap.PAGESIZE]) > 0
    with_file, files = anonymous(), mapped()
    shared = mmap.mmap(-1, 32 * MIB)
    shared.write(b"x" * len(shared))
    with_shared = anonymous()
    code.close()
    shared.close()

    assert files - files_before > 60 * MIB
    assert with_file - before < 4 * MIB
    assert with_shared - with_file == pytest.approx(32 * MIB, abs=4 * MIB)


@pytest.mark.parametrize("is_warm", [False, True])
def test_a_peak_is_the_same_with_a_cold_and_a_warm_page_cache(
    large_file: Path, is_warm: bool
) -> None:
    """A step uses 128 MiB and a few pages of a library, of which a warm cache maps their surroundings too."""
    descriptor = os.open(large_file, os.O_RDONLY)
    code = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    code.madvise(mmap.MADV_RANDOM)
    if is_warm:
        large_file.read_bytes()
    else:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    trim()
    before = anonymous()
    peaks = []

    for _ in range(2):  # a probe repeats its worst step
        reset_peak()
        files = mapped()
        assert sum(code[:: 64 * 1024]) > 0
        allocate(128 * MIB).close()
        peaks.append(peak_anonymous(files) - before)
    code.close()

    assert max(peaks) == pytest.approx(128 * MIB, rel=0.01)


def test_the_peak_outlives_what_caused_it_until_it_is_reset() -> None:
    """A second probe in the same process starts from what is resident, not from the first's peak."""
    reset_peak()
    block = mmap.mmap(-1, 64 * MIB)  # a heap with a hole of that size would keep it
    block.write(b"x" * len(block))
    held = resident("self")
    block.close()

    before = peak_anonymous(0) + mapped()
    reset_peak()
    after = peak_anonymous(0) + mapped()

    assert before > held - MIB  # the two are counted apart, a few pages off
    assert before - after > 48 * MIB


@pytest.mark.parametrize(
    ("name", "call", "message"),
    [
        (
            "STATUS",
            partial(peak_anonymous, 0),
            "{file} shows no peak memory (VmHWM); run on Linux with a full /proc",
        ),
        (
            "CLEAR_REFS",
            reset_peak,
            "the peak memory of a process cannot be reset ({file}: Is a directory); mount /proc "
            "writable in the container, or measure each size in a fresh process",
        ),
    ],
)
def test_a_kernel_that_keeps_no_peak_is_an_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    call: Callable[[], object],
    message: str,
) -> None:
    """0 would read as a probe that took nothing. Some containers mount /proc read-only."""
    file = tmp_path / "status" if name == "STATUS" else tmp_path
    (tmp_path / "status").write_text("Name:\tpython\n")
    monkeypatch.setattr(processes, name, file)

    with pytest.raises(DeviceError) as caught:
        call()

    assert str(caught.value) == message.format(file=file)


def test_trimming_gives_freed_blocks_back() -> None:
    """Blocks too small to be mapped one by one stay with glibc, below the last that is held."""
    blocks = [b"x" * (64 * 1024 + i) for i in range(1024)]
    held = resident("self")
    last = blocks.pop()
    del blocks

    trim()

    assert len(last) > 64 * 1024
    assert held - resident("self") > 32 * MIB


def test_a_libc_that_cannot_trim_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """musl has no `malloc_trim`, and keeps little."""
    monkeypatch.delattr(psutil, "heap_trim")

    trim()


def test_a_limit_can_be_moved_and_never_passes_the_hard_one() -> None:
    """`ulimit -Hd` of the shell that started us stays in force."""
    printed = printed_by(
        "import resource\n"
        "from autotune.devices.processes import limit_data\n"
        "soft = lambda: resource.getrlimit(resource.RLIMIT_DATA)[0]\n"
        f"limit_data({300 * MIB}); low = soft()\n"
        f"resource.setrlimit(resource.RLIMIT_DATA, ({300 * MIB}, {400 * MIB}))\n"
        f"limit_data({350 * MIB}); moved = soft()\n"
        f"limit_data({500 * MIB}); print(low, moved, soft())\n"
    )

    assert printed == f"{300 * MIB} {350 * MIB} {400 * MIB}\n"


def test_pages_that_two_processes_share_count_once_between_them() -> None:
    """Resident bytes count them in each, so that a loader's workers would seem to fill the host."""
    counted_twice = printed_by(
        "import mmap, os, time\n"
        "from autotune.devices.processes import proportional, resident\n"
        f"block = mmap.mmap(-1, {64 * MIB}); block.write(b'x' * {64 * MIB})\n"
        "touched, touch = os.pipe()\n"
        "if not (child := os.fork()):\n"
        "    sum(block[::4096]); os.write(touch, b'.'); time.sleep(60); os._exit(0)\n"
        "os.read(touched, 1)\n"
        "pids = (os.getpid(), child)\n"
        "print(sum(map(resident, pids)) - sum(map(proportional, pids)))\n"
        "os.kill(child, 9); os.wait()\n"
    )

    assert int(counted_twice) > 60 * MIB


def test_a_family_has_the_seconds_of_its_descendants() -> None:
    """A launcher waits and its worker computes; other children of ours do not count."""
    spin = "while True: pass"
    launch = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{spin}'])"
    parent = subprocess.Popen([sys.executable, "-c", launch], start_new_session=True)
    other = subprocess.Popen([sys.executable, "-c", spin])
    try:
        with deadline(30):
            while cpu_seconds_of_families([parent.pid]) < 1.0:
                pass
        of_both = cpu_seconds_of_families([parent.pid, other.pid])
        alone = psutil.Process(parent.pid).cpu_times()
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        other.kill()
        parent.wait()
        other.wait()

    assert alone.user + alone.system < 0.9
    assert of_both > cpu_seconds_of_families([parent.pid]) == 0
