"""The command line and environment that start our worker processes; nothing is started here.

One process runs directly; several go through torchrun. The interpreter runs with the safe path, so it never
imports a `trainer/` or `profiles/` of the user's folder.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from autotune.workers.channel import SOCKET_VARIABLE

CPU_ENVIRONMENT = {
    # glibc keeps freed blocks in free lists, so peaks depend on what ran before. From 64 KiB up, blocks get
    # pages of their own: peaks then grow linearly, in any order of sizes. With a threshold of 1 MiB they
    # scatter by 4 % and are 5 % higher; steps of 4 to 16 sequences take a third less time, steps of 40 and
    # more the same (T5 of d_model 128, 54 + 70 tokens, 2 cores, glibc 2.36).
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536",
    # Torch asks for huge pages for tensors of 2 MiB and more. Where glibc asks for all blocks
    # (glibc.malloc.hugetlb=1), the same steps are as fast, hold 6 % more, and differ by 3 % between processes
    # instead of 1 % (chatlm-tiny, 85 sequences, 300 MB, 30 and 11 processes, torch 2.13, 2026-11).
    "THP_MEM_ALLOC_ENABLE": "1",
    # oneDNN compiles a bf16 product for each new shape and keeps 1,024 with their buffers, in two caches:
    # 450 MiB more after 40 steps, and 3 MiB with these limits, in the same time.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
    "LRU_CACHE_CAPACITY": "16",
    # Threads that spin while they wait take the cores from each other: a step took 17.6 s spinning and
    # 0.23 s sleeping, beside another training process on 2 cores.
    "OMP_WAIT_POLICY": "PASSIVE",
}
CUDA_ENVIRONMENT = {
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the order of the driver and of NVML
}


def memory_environment(device: str) -> dict[str, str]:
    """The variables that a peak depends on, for `cuda` or `cpu`; a profile records them."""
    return dict(CUDA_ENVIRONMENT if device == "cuda" else CPU_ENVIRONMENT)


def worker_environment(device: str, world_size: int) -> dict[str, str]:
    """The environment of a worker on `cuda` or `cpu`: this process's, with an equal share of the cores."""
    threads = max(1, len(os.sched_getaffinity(0)) // world_size)
    return {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
        **memory_environment(device),
    }


def wants_cpu(environment: Mapping[str, str]) -> bool:
    """Whether `accelerate launch` was told to stay on the CPU."""
    return is_true(environment.get("ACCELERATE_USE_CPU"))


def is_true(value: str | None) -> bool:
    """Whether accelerate reads a variable of that value as true."""
    return (value or "").lower() in ("1", "true", "yes", "y", "on", "t")


def reexec_with_environment(module: str, arguments: Sequence[str]) -> None:
    """Replaces this process by one with the safe path and the memory variables, unless it has both.

    The user's own launcher does not set them: peaks would differ from the profile's, and a `profiles/`
    in the current folder could be imported.
    """
    on_cpu = bool({"cpu", "--device=cpu"} & {*arguments}) or wants_cpu(os.environ)
    on_gpu = Path("/proc/driver/nvidia").exists() and not on_cpu
    wanted = memory_environment("cuda" if on_gpu else "cpu")
    if SOCKET_VARIABLE in os.environ or (
        sys.flags.safe_path and all(os.environ.get(k) == v for k, v in wanted.items())
    ):
        return
    command = [sys.executable, "-P", "-m", module, *arguments]
    os.execve(sys.executable, command, {**os.environ, **wanted, "PYTHONSAFEPATH": "1"})


def worker_command(module: str, world_size: int) -> list[str]:
    """The command that runs `module` in `world_size` processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
    return [sys.executable, "-P", *(torchrun if world_size > 1 else []), "-m", module]
