"""A workload without torch whose memory is real: `fixed + size × per_size` bytes, written to.

A worker builds it in a fifth of a second, so that many endings of a probe can be had in seconds.
Named by path, `tests.toy_workload:build`; its settings are `toy(...)`.
"""

import mmap
import os
import signal
import time
from pathlib import Path
from typing import Any

from autotune.errors import ModelError
from autotune.memory import HostMemory
from autotune.probe import Load

PATH = "tests.toy_workload:build"
ROOT = Path(__file__).parents[1]
"""On the workers' PYTHONPATH: they run with the safe path."""
MIB = 2**20


def toy(
    *,
    fixed: int = 8 * MIB,
    per_size: int = MIB,
    how: str | None = None,
    at: int = 1,
    once: Path | None = None,
    building: bool = False,
    oom_counter: Path | None = None,
    victim: int | None = None,
    after: Path | None = None,
) -> dict[str, Any]:
    """Settings of a workload that misbehaves, where `how` says so, from size `at` on.

    how: `kill`, `crash`, `hang`, `refuse`, `memory error` or `quit`
    once: only where this file does not exist yet
    building: instead of a probe, when it is built
    oom_counter: a made-up file of the kernel's that counts the kill
    after: it waits until this file exists
    victim: only on this rank; the others then crash, as in a collective that one has left
    """
    return {
        "fixed": fixed,
        "per_size": per_size,
        "how": how,
        "at": at,
        "once": None if once is None else str(once),
        "building": building,
        "oom_counter": None if oom_counter is None else str(oom_counter),
        "victim": victim,
        "after": None if after is None else str(after),
    }


class ToyWorkload:
    """Holds bytes instead of tensors."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.memory = HostMemory()
        if settings["memory_limit"] is not None:
            self.memory.limit(settings["memory_limit"])
        self.facts = {"model": "toy", "rows": 1000, "fingerprint": {}, "notice": None}
        self.resident = allocate(settings["fixed"])
        if settings["building"]:
            self._misbehave()

    def accumulate(self, size: int) -> Load:
        if size >= self.settings["at"] and not self.settings["building"]:
            self._misbehave()
        activations = allocate(size * self.settings["per_size"])
        activations.close()
        return Load(samples=size, tokens=10 * size)

    def update(self) -> None:
        return

    def any_rank(self, claim: bool) -> bool:
        return claim

    def _misbehave(self) -> None:
        once = self.settings["once"]
        if self.settings["how"] is None or (once and Path(once).exists()):
            return
        if self.settings["after"]:
            wait_for(self.settings["after"])
        if self.settings["victim"] not in (None, int(os.environ.get("RANK", "0"))):
            wait_for(once)
            raise ConnectionError("connection closed by peer")
        if once:
            Path(once).touch()
        match self.settings["how"]:
            case "kill":
                if self.settings["oom_counter"]:
                    Path(self.settings["oom_counter"]).write_text("oom_kill 1\n")
                os.kill(os.getpid(), signal.SIGKILL)
            case "crash":
                raise ValueError("the toy broke\nin two lines")
            case "hang":
                time.sleep(60)
            case "refuse":
                raise ModelError("no such toy; use another")
            case "memory error":
                raise MemoryError
            case "quit":
                os._exit(0)


def allocate(amount: int) -> mmap.mmap:
    """That many bytes in pages of their own, each written to: resident, and gone once closed."""
    block = mmap.mmap(-1, max(1, amount), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start in range(0, amount, mmap.PAGESIZE):
        block[start] = 1
    return block


def wait_for(file: str) -> None:
    while not Path(file).exists():
        time.sleep(0.01)


def build(settings: dict[str, Any]) -> ToyWorkload:
    """The workload of those settings."""
    return ToyWorkload(settings)
