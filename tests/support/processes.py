"""Other processes as tests see them: which there are, and waiting for them, never for ever."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

DEADLINE = 200.0
"""Seconds after which what a test waits for will not come, also on a busy machine."""


@contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in a block that hangs, instead of holding up all other tests."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"nothing came within {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def each_within(seconds: int) -> object:
    """A fixture that gives each test of the module that holds it so many seconds."""

    @pytest.fixture(autouse=True)
    def nothing_hangs() -> Iterator[None]:
        with deadline(seconds):
            yield

    return nothing_hangs


def printed_by(code: str, **environment: str) -> str:
    """What a fresh process that runs this code prints; it must succeed and say nothing of errors."""
    command, environ = [sys.executable, "-c", code], {**os.environ, **environment}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def workers_of(pid: int) -> list[psutil.Process]:
    """The worker processes below this one, a launcher between them left out."""
    below = psutil.Process(pid).children(recursive=True)
    return [process for process in below if _is_worker(process)]


def still_running(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that do not end within the deadline; a zombie holds nothing and counts as ended."""
    left = list(processes)
    wait_until(lambda: not any(map(is_running, left)))
    return [process for process in left if is_running(process)]


def is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(claim: Callable[[], bool]) -> bool:
    """Whether the claim came true before the deadline."""
    end = time.monotonic() + DEADLINE
    while not claim():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def environment_of(pid: int) -> dict[str, str]:
    """The environment that a process was started with; empty once it is gone."""
    try:
        text = Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return {}
    return dict(entry.partition("=")[::2] for entry in text.split("\0") if entry)


def _is_worker(process: psutil.Process) -> bool:
    """Whether it is a worker: torchrun's command line names the worker's module too."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    is_launcher = "torch.distributed.run" in command
    return (
        "autotune.tuning.probe_worker" in command
        and not is_launcher
        and "CHATLM_SOCKET" in environment_of(process.pid)
    )
