"""Processes as the benchmarks see them: which there are, and their end, which is never waited for without limit."""

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

PATIENCE = 120.0
"""Seconds that what is waited for may take."""


def wait_for(claim: Callable[[], bool], seconds: float = PATIENCE, pause: float = 0.02) -> bool:
    """Whether the claim came true within those seconds."""
    end = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True


def wait_for_the_end(pids: Iterable[int]) -> None:
    """Returns when they are gone: workers end themselves with their supervisor."""
    left = list(pids)
    if not wait_for(lambda: not any(map(command, left))):
        raise SystemExit(f"processes {left} outlived their supervisor")


def descendants(pid: int) -> list[int]:
    """The processes below it; none once it is gone."""
    import psutil

    try:
        return sorted(child.pid for child in psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def command(pid: int) -> str:
    """Its command line; empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def workers_below(pid: int) -> list[int]:
    """The ranks among the processes below it, a launcher between them left out."""
    return [
        child for child in descendants(pid)
        if any(f"-m {name}" in (words := command(child)) for name in ("trainer", "autotune.tuning"))
        and "torch.distributed.run" not in words
    ]  # fmt: skip


def started_with(value: str) -> list[int]:
    """The processes that have this value in their environment, as far as we may read it."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # another user's, or one that has ended since
            if value.encode() in file.read_bytes():
                found.append(int(file.parent.name))
    return found


def send(pids: Iterable[int], number: int) -> None:
    """Sends the signal to each that is still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def stop(pids: Iterable[int]) -> None:
    """Returns once each of them stands still."""
    left = list(pids)
    send(left, signal.SIGSTOP)
    wait_for(lambda: all(state(pid) in ("T", "") for pid in left), seconds=5, pause=0.001)


def state(pid: int) -> str:
    """The kernel's letter for what it does: T where it stands still; empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def handles(pid: int, number: int) -> bool:
    """Whether it has a handler for that signal."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False
