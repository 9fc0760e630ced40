"""Processes: this one and its children."""

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from autotune.devices import processes
from autotune.devices.processes import (
    cpu_seconds_of_families,
    peak_resident,
    proportional,
    reset_peak,
    resident,
    trim,
)
from autotune.errors import DeviceError
from tests.support.processes import deadline, printed_by

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

    zombie = resident(child.pid), proportional(child.pid)
    child.wait()

    assert zombie == (0, 0)
    assert (resident(child.pid), proportional(child.pid)) == (0, 0)


def test_the_peak_outlives_what_caused_it_until_it_is_reset() -> None:
    """A second probe in the same process starts from what is resident, not from the first's peak."""
    reset_peak()
    block = mmap.mmap(-1, 64 * MIB)  # a heap with a hole of that size would keep it
    block.write(b"x" * len(block))
    held = resident("self")
    block.close()

    before = peak_resident()
    reset_peak()
    after = peak_resident()

    assert before > held - MIB  # the two are counted apart, a few pages off
    assert before - after > 48 * MIB


@pytest.mark.parametrize(
    ("name", "call", "message"),
    [
        (
            "STATUS",
            peak_resident,
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
