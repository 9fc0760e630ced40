"""A workload without torch whose memory is real: `fixed + size × per_size` bytes, written to.

A worker builds it in a fifth of a second, so that many endings of a probe can be had in seconds.
Named by path, `tests.support.toy_workload:build`; its settings are `toy(...)`.
"""

import mmap
import os
import signal
import time
from pathlib import Path
from typing import Any

from autotune.devices.allocator import HostMemory
from autotune.errors import ModelError
from autotune.tuning.probe import Load

PATH = "tests.support.toy_workload:build"
ROOT = Path(__file__).parents[2]
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
    beside: int = 0,
    device: str = "cpu",
    leak: int = 0,
    scattered: int = 0,
    retries: int = 0,
) -> dict[str, Any]:
    """Settings of a workload that misbehaves, where `how` says so, from size `at` on.

    how: `kill`, `crash`, `hang`, `refuse`, `memory error` or `quit`; `touch` makes the file and no more,
        `visit` makes it, waits until `after` has been made, and removes both
    once: only where this file does not exist yet
    building: instead of a probe, when it is built
    oom_counter: a made-up file of the kernel's that counts the kill
    after: it waits until this file exists
    victim: only on this rank; the others then crash, as in a collective that one has left
    device: what the memory is said to be of; `{rank}` stands for the rank
    leak: bytes that each step keeps
    scattered: bytes that a step takes more once a mix has left the memory in pieces
    retries: how often the allocator has to flush its cache in a step
    beside: bytes that a probe holds where its own limit does not see them, as NCCL does
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
        "beside": beside,
        "device": device,
        "leak": leak,
        "scattered": scattered,
        "retries": retries,
    }


class ToyMemory(HostMemory):
    """Resident pages, and an allocator's flushes to count."""

    flushes = 0

    def retries(self) -> int:
        return self.flushes


class ToyWorkload:
    """Holds bytes instead of tensors."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.memory = ToyMemory()
        self.extra = 0
        self.memory.device = settings["device"].format(rank=os.environ.get("RANK", "0"))
        if settings["memory_limit"] is not None:
            self.memory.limit(settings["memory_limit"])
        self.workload_info = {"model": "toy", "rows": 1000, "fingerprint": {}, "notice": None}
        self.kept = [allocate(settings["fixed"])]
        if settings["building"]:
            self._misbehave()

    def forward_backward(self, size: int) -> Load:
        if size >= self.settings["at"] and not self.settings["building"]:
            self.beside = allocate(self.settings["beside"], mmap.MAP_SHARED)
            self._misbehave()
        self.memory.flushes += self.settings["retries"]
        activations = allocate(size * self.settings["per_size"] + self.extra)
        activations.close()
        return Load(samples=size, tokens=10 * size)

    def mixed_lengths_step(self, size: int) -> None:
        self.forward_backward(max(1, size // 2))
        self.extra = self.settings["scattered"]

    def optimizer_step(self) -> None:
        if self.settings["leak"]:
            self.kept.append(allocate(self.settings["leak"]))

    def evaluate(self, size: int) -> Load:
        activations = allocate(size * self.settings["per_size"] // 2)
        activations.close()
        return Load(samples=size, tokens=10 * size)

    def data_wait(self, size: int, *, loaders: int, busy: float) -> tuple[float, int]:
        return 0.0, loaders * MIB

    def dry_run(self, size: int, side: int | None) -> bool:
        return False

    def any_rank(self, claim: bool) -> bool:
        return claim

    def _misbehave(self) -> None:
        once = self.settings["once"]
        if self.settings["how"] == "visit":
            Path(once).touch()
            wait_for(self.settings["after"])
            Path(once).unlink()
            Path(self.settings["after"]).unlink()
            return
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
                raise ModelError("no such toy", "use another")
            case "memory error":
                raise MemoryError
            case "quit":
                os._exit(0)


def allocate(amount: int, kind: int = mmap.MAP_PRIVATE) -> mmap.mmap:
    """That many bytes in pages of their own, each written to: resident, and gone once closed."""
    block = mmap.mmap(-1, max(1, amount), flags=kind | mmap.MAP_ANONYMOUS)
    for start in range(0, amount, mmap.PAGESIZE):
        block[start] = 1
    return block


def wait_for(file: str) -> None:
    while not Path(file).exists():
        time.sleep(0.01)


def build(settings: dict[str, Any]) -> ToyWorkload:
    """The workload of those settings."""
    return ToyWorkload(settings)
