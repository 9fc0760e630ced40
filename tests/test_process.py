"""One process's memory: this one's, a child's, and made-up ones."""

import ctypes
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.errors import DeviceError
from autotune.process import peak_resident, reset_peak, resident, trim

MIB = 2**20
ROOT = Path(__file__).parents[1]


def run(code: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_resident_memory_follows_what_is_held() -> None:
    """A block that is written counts, by process id and as `self`."""
    before = resident(os.getpid())

    block = b"x" * (64 * MIB)
    held = resident("self")

    assert len(block) == 64 * MIB
    assert held - before > 60 * MIB


def test_a_process_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    """It may end between being listed and being read; a zombie has given its memory back."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    zombie = resident(child.pid)
    child.wait()

    assert zombie == 0
    assert resident(child.pid) == 0
    assert resident(1, proc=tmp_path) == 0


def test_resident_counts_pages(tmp_path: Path) -> None:
    """statm is in pages: the second number, not the reserved addresses before it."""
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "statm").write_text("900 250 30 1 0 80 0\n")

    assert resident(7, proc=tmp_path) == 250 * resource.getpagesize()


def test_the_peak_outlives_what_caused_it_until_it_is_reset() -> None:
    """A second probe in the same process starts from what is resident, not from the first's peak."""
    block = b"x" * (64 * MIB)
    held = resident("self")
    del block

    before = peak_resident()
    reset_peak()
    after = peak_resident()

    assert before > held - MIB  # the two are counted apart, a few pages off
    assert before - after > 48 * MIB


def test_a_peak_is_in_bytes(tmp_path: Path) -> None:
    """The kernel writes kB."""
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text("Name:\tpython\nVmHWM:\t    1760 kB\nVmRSS:\t 9 kB\n")

    assert peak_resident(7, proc=tmp_path) == 1760 * 1024


def test_a_peak_that_is_not_kept_is_an_error(tmp_path: Path) -> None:
    """0 would read as a probe that took nothing."""
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text("Name:\tpython\n")

    with pytest.raises(DeviceError) as hidden:
        peak_resident(7, proc=tmp_path)
    with pytest.raises(DeviceError) as gone:
        peak_resident(8, proc=tmp_path)

    assert str(hidden.value) == (
        f"{tmp_path / '7' / 'status'} shows no peak memory (VmHWM): the process has ended, or this "
        f"kernel keeps none; run on Linux with a full /proc"
    )
    assert "the process has ended" in str(gone.value)


def test_a_reset_that_is_not_permitted_says_what_to_do(tmp_path: Path) -> None:
    """Some containers mount /proc read-only, and some kernels lack the file."""
    (tmp_path / "self").mkdir()

    with pytest.raises(DeviceError) as caught:
        reset_peak(proc=tmp_path)

    file = tmp_path / "self" / "clear_refs"
    assert str(caught.value) == (
        f"the peak memory of a process cannot be reset ({file}: No such file or directory); mount "
        f"/proc writable in the container, or measure each size in a fresh process"
    )
    assert not file.exists()


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
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())

    trim()


def test_beyond_the_limit_an_allocation_fails_and_the_process_goes_on() -> None:
    """An out-of-memory that can be caught, instead of the kernel's kill."""
    printed = run(
        "from autotune.process import limit_data\n"
        f"limit_data({256 * MIB})\n"
        "try:\n"
        f"    b'x' * {512 * MIB}\n"
        "except MemoryError:\n"
        f"    print('refused', len(b'x' * {32 * MIB}))\n"
    )

    assert printed == f"refused {32 * MIB}"


def test_a_limit_can_be_moved_and_never_passes_the_hard_one() -> None:
    """`ulimit -Hd` of the shell that started us stays in force."""
    printed = run(
        "import resource\n"
        "from autotune.process import limit_data\n"
        "soft = lambda: resource.getrlimit(resource.RLIMIT_DATA)[0]\n"
        f"limit_data({300 * MIB}); low = soft()\n"
        f"resource.setrlimit(resource.RLIMIT_DATA, ({300 * MIB}, {400 * MIB}))\n"
        f"limit_data({350 * MIB}); moved = soft()\n"
        f"limit_data({500 * MIB}); print(low, moved, soft())\n"
    )

    assert printed == f"{300 * MIB} {350 * MIB} {400 * MIB}"
