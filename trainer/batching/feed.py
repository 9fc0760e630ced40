"""The loader of a run: optimizer steps in order, made here or by processes of their own."""

import os
import signal
from collections.abc import Sequence

from torch.utils.data import DataLoader

from autotune.devices.processes import descendants, proportional
from trainer.batching.step_loader import Step, Steps


def load_steps(steps: Steps, numbers: Sequence[int], loaders: int) -> "DataLoader[Step]":
    """Those steps, in order; with `loaders` processes ahead of their use."""
    return DataLoader(
        steps,
        batch_size=None,
        sampler=numbers,
        num_workers=loaders,
        multiprocessing_context="spawn" if loaders else None,
        worker_init_fn=_heed_no_signal,
    )


def _heed_no_signal(_: int) -> None:
    """SLURM and a terminal reach the loaders too: the trainer still has a step to end, and ends them."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def loaders_memory() -> int:
    """Bytes of this process's loaders, pages that they share counted once."""
    return sum(proportional(pid) for pid in descendants(os.getpid()))
