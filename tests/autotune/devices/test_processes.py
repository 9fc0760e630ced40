"""Processes through /proc: this one, its children, and made-up ones."""

import ctypes
import mmap
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.devices.processes import (
    cpu_seconds,
    cpu_seconds_of_families,
    descendants,
    peak_resident,
    proportional,
    reset_peak,
    resident,
    trim,
)
from autotune.errors import DeviceError
from tests.support.processes import deadline

MIB = 2**20
ROOT = Path(__file__).parents[3]


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
    assert held - before > 32 * MIB  # this process may give back other pages meanwhile


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
        "from autotune.devices.processes import limit_data\n"
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
        "from autotune.devices.processes import limit_data\n"
        "soft = lambda: resource.getrlimit(resource.RLIMIT_DATA)[0]\n"
        f"limit_data({300 * MIB}); low = soft()\n"
        f"resource.setrlimit(resource.RLIMIT_DATA, ({300 * MIB}, {400 * MIB}))\n"
        f"limit_data({350 * MIB}); moved = soft()\n"
        f"limit_data({500 * MIB}); print(low, moved, soft())\n"
    )

    assert printed == f"{300 * MIB} {350 * MIB} {400 * MIB}"


def test_a_limit_that_is_restored_lets_the_process_grow_again() -> None:
    """No limit is a limit like any other."""
    printed = run(
        "from autotune.devices.processes import limit_data, restore_data_limit\n"
        f"before = limit_data({256 * MIB})\n"
        "restore_data_limit(before)\n"
        f"print(len(b'x' * {512 * MIB}))\n"
    )

    assert printed == str(512 * MIB)


def made_up(proc: Path, pid: int, parent: int, name: str = "python", ticks: str = "0 0") -> Path:
    """A process in a made-up /proc."""
    folder = proc / str(pid)
    folder.mkdir()
    (folder / "stat").write_text(f"{pid} ({name}) S {parent} 1 1 0 -1 4 1 2 3 4 {ticks} 99 98 20\n")
    return folder


def test_proportional_bytes_are_the_kernels(tmp_path: Path) -> None:
    """Pss itself, in kB, and not one of its parts."""
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "smaps_rollup").write_text(
        "55c0-7ffd ---p 00000000 00:00 0   [rollup]\n"
        "Rss:      3000 kB\nPss_Dirty:    9 kB\nPss:      1200 kB\nPss_Anon:    5 kB\n"
    )

    assert proportional(7, proc=tmp_path) == 1200 * 1024


@pytest.mark.parametrize("rollup", [None, ""])
def test_where_proportional_bytes_are_not_told_resident_ones_are(
    tmp_path: Path, rollup: str | None
) -> None:
    """An old kernel has no such file; 0 would read as a process that takes nothing."""
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "statm").write_text("900 250 30 1 0 80 0\n")
    if rollup is not None:
        (tmp_path / "7" / "smaps_rollup").write_text(rollup)

    assert proportional(7, proc=tmp_path) == 250 * resource.getpagesize()
    assert proportional(8, proc=tmp_path) == 0


def test_pages_that_two_processes_share_count_once_between_them() -> None:
    """Resident bytes count them in each, so that a loader's workers would seem to fill the host."""
    counted_twice = run(
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


def test_descendants_are_those_that_the_kernel_lists(tmp_path: Path) -> None:
    """Children are listed by the thread that started them, nearest generation first here."""
    lists = {(1, 1): "2 3 ", (1, 9): "4", (2, 2): "5", (5, 5): "", (3, 3): "", (4, 4): "6 7"}
    for (pid, thread), children in lists.items():
        folder = tmp_path / str(pid) / "task" / str(thread)
        folder.mkdir(parents=True)
        (folder / "children").write_text(children)

    found = descendants(1, proc=tmp_path)

    assert sorted(found) == [2, 3, 4, 5, 6, 7]
    assert set(found[:3]) == {2, 3, 4}


def test_descendants_are_found_by_their_parents_where_nothing_lists_them(tmp_path: Path) -> None:
    """Kernels may be built without those lists; what is no process is passed over."""
    for pid, parent in {1: 0, 2: 1, 3: 1, 4: 3, 5: 4, 8: 0, 9: 8}.items():
        made_up(tmp_path, pid, parent, name="a) b (c")
    (tmp_path / "meminfo").write_text("MemTotal: 1 kB\n")
    (tmp_path / "6").mkdir()  # ended since it was listed

    assert sorted(descendants(1, proc=tmp_path)) == [2, 3, 4, 5]
    assert descendants(9, proc=tmp_path) == ()
    assert descendants(77, proc=tmp_path) == ()


def test_a_number_that_is_given_again_does_not_hang_the_search(tmp_path: Path) -> None:
    """Between two looks a parent may end, and its number become its own grandchild's."""
    made_up(tmp_path, 1, parent=2)
    made_up(tmp_path, 2, parent=1)

    assert descendants(1, proc=tmp_path) == (2,)


def test_children_and_theirs_are_found_on_this_machine() -> None:
    """A launcher's workers are the supervisor's grandchildren."""
    script = (
        "import subprocess as s; p = s.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())

    found = descendants(os.getpid())
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()

    assert {child.pid, grandchild} <= set(found)
    assert found.index(child.pid) < found.index(grandchild)


def test_cpu_seconds_are_those_of_user_and_system(tmp_path: Path) -> None:
    """Whatever the name holds; those of ended children, beside them, are not its own."""
    second = os.sysconf("SC_CLK_TCK")
    made_up(tmp_path, 7, parent=1, name="pt) main (0 S 9", ticks=f"{3 * second} {second // 2}")

    assert cpu_seconds(7, proc=tmp_path) == 3.5
    assert cpu_seconds(8, proc=tmp_path) is None


def test_cpu_seconds_grow_while_a_process_computes() -> None:
    """And there are none of a process that is gone."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()

    before = cpu_seconds("self")
    assert before is not None
    with deadline(30):
        while (cpu_seconds("self") or 0) < before + 0.05:
            sum(range(10_000))

    assert cpu_seconds(child.pid) is None


def test_a_family_has_the_seconds_of_its_children() -> None:
    """A parent that waits has none of its own; it and its child count once."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        with deadline(30):
            while cpu_seconds_of_families([parent.pid]) < 1.0:
                pass
        children = descendants(parent.pid)
        alone = cpu_seconds(parent.pid)
    finally:
        for pid in (*descendants(parent.pid), parent.pid):
            os.kill(pid, signal.SIGKILL)
        parent.wait()

    assert len(children) == 1
    assert alone is not None
    assert alone < 0.9
