"""The command line and environment that start our worker processes; nothing is started here.

One process runs directly; several go through torchrun. Either way the interpreter runs with the
safe path on, so that a `trainer/` or `profiles/` in the user's folder is never imported for ours.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from autotune.workers.channel import SOCKET_VARIABLE

CPU_ENVIRONMENT = {
    # glibc keeps freed blocks in ever larger free lists, so that peaks depend on what ran before.
    # Blocks from 64 KiB up get pages of their own, in huge pages where the kernel grants them: peaks
    # then repeat to 0.3 % in any order of sizes, and grow in a line. From 1 MiB up they would scatter
    # by 4 % and be 5 % higher; a step with tensors in between, of 4 to 16 sequences, would take a third
    # less time, of 40 and more the same (T5 of d_model 128, 54 + 70 tokens, 2 cores, glibc 2.36).
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=65536",
    # oneDNN compiles a bf16 product for each new shape, and by default keeps the last 1,024 with their
    # buffers, in two caches: 450 MiB more after 40 steps, 3 with these, in the same time.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
    "LRU_CACHE_CAPACITY": "16",
    # Threads that spin while they wait starve each other on a shared machine: a step took 17.6 s
    # spinning and 0.23 s sleeping beside one other training process on 2 cores.
    "OMP_WAIT_POLICY": "PASSIVE",
}
CUDA_ENVIRONMENT = {
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the driver's own order, as NVML has it
}


def memory_environment(device: str) -> dict[str, str]:
    """The variables that a peak depends on, for `cuda` or `cpu`; a profile records them."""
    return dict(CUDA_ENVIRONMENT if device == "cuda" else CPU_ENVIRONMENT)


def worker_environment(variables: Mapping[str, str], world_size: int) -> dict[str, str]:
    """This process's environment as a worker should see it: the cores shared out over the ranks."""
    threads = max(1, len(os.sched_getaffinity(0)) // world_size)
    common = {
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }
    return {**os.environ, **common, **variables}


def reexec_with_environment(module: str, arguments: Sequence[str]) -> None:
    """Starts this process anew, under the same id, unless it has the safe path and its variables.

    Under a launcher of the user's own nobody has set them: peaks would not be the profile's, and a
    `profiles/` in the current folder could be imported for ours.
    """
    on_cpu = (
        bool({"cpu", "--device=cpu"} & {*arguments})
        or os.environ.get("ACCELERATE_USE_CPU") == "True"
    )
    on_gpu = Path("/proc/driver/nvidia").exists() and not on_cpu
    wanted = memory_environment("cuda" if on_gpu else "cpu")
    if SOCKET_VARIABLE in os.environ or (
        sys.flags.safe_path and all(os.environ.get(k) == v for k, v in wanted.items())
    ):
        return
    command = [sys.executable, "-P", "-m", module, *arguments]
    os.execve(sys.executable, command, {**os.environ, **wanted, "PYTHONSAFEPATH": "1"})


def worker_command(module: str, world_size: int, arguments: Sequence[str] = ()) -> list[str]:
    """What runs `module` in `world_size` processes."""
    python = [sys.executable, "-P"]
    if world_size == 1:
        return [*python, "-m", module, *arguments]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
    return [*python, *torchrun, "-m", module, *arguments]
