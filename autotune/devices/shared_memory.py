"""Shared memory: without enough of it NCCL and loader workers die, and their errors do not name it.

A container has 64 MiB by default. (pytorch#5040; NCCL says "Error while attaching to shared memory
segment", a loader worker ends with a bus error.)
"""

import shutil
from pathlib import Path

from autotune.units import format_bytes

SHARED_MEMORY = Path("/dev/shm")
NEEDED = 64 * 2**20
"""Bytes for each process that uses it: a rule of thumb, what Docker gives a whole container."""


def free_shared_memory(path: Path = SHARED_MEMORY) -> int | None:
    """Free bytes of shared memory; `None` where there is none at all."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def shared_memory(path: Path = SHARED_MEMORY) -> str:
    """How much of it there is and is free, in words."""
    try:
        disk = shutil.disk_usage(path)
    except OSError:
        return f"there is no {path}"
    return f"{path} has {format_bytes(disk.total)}, {format_bytes(disk.free)} of them free"


def suffices(free: int | None, users: int) -> bool:
    """Whether `free` bytes are enough for that many processes that use shared memory."""
    return users == 0 or (free is not None and free >= NEEDED * users)


def shortage(free: int | None, *, nccl_ranks: int, loader_workers: int) -> str | None:
    """A line that says what is missing and what to do; None when there is enough.

    `nccl_ranks` is the number of processes that use NCCL, 0 for one process or gloo;
    `loader_workers` is their number over all ranks.
    """
    users = nccl_ranks + loader_workers
    if suffices(free, users):
        return None
    has = "there is no" if free is None else f"{format_bytes(free)} free in"
    cures = ["in Docker, run with --shm-size 1g"]
    if nccl_ranks:
        cures.append("set NCCL_SHM_DISABLE=1 or use --backend gloo")
    if loader_workers:
        cures.append("use no loader workers")
    return (
        f"{has} {SHARED_MEMORY}, and {users} process{'es' if users > 1 else ''} may want "
        f"{format_bytes(NEEDED * users)}: {', or '.join(cures)}"
    )
