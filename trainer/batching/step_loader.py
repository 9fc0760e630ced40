"""Optimizer steps as data: which samples, this rank's share of them, cut and padded."""

import os
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader, Dataset

from autotune.devices.processes import proportional
from autotune.partition import Costs
from autotune.plan import Plan, cut
from trainer.batching.collator import IGNORED, Batch, Collator
from trainer.data.sample_order import Rows, StepOrder


@dataclass(frozen=True, slots=True)
class RankStep:
    """One rank's part in an optimizer step."""

    batches: list[Batch]
    target_tokens: int
    """Target tokens of the whole step, over all ranks."""
    rows: Rows
    """This rank's row numbers, counted from 0."""


@dataclass(frozen=True)
class Steps(Dataset[RankStep]):
    """Step by number: its samples, this rank's share of them, cut and padded."""

    collator: Collator
    order: StepOrder
    plan: Plan
    _: KW_ONLY
    costs: Costs
    rank: int
    in_step: bool = False
    """Whether every rank runs the same number of micro-batches: that of the rank with the most."""

    def __getitem__(self, step: int) -> RankStep:
        rows = self.order.step(step)
        ranks = cut(
            self.collator.lengths(rows),
            world_size=self.plan.world_size,
            micro_batch=self.plan.sizes,
            costs=self.costs,
        )
        batches = [self.collator.batch(rows[piece]) for piece in ranks[self.rank]]
        if self.in_step:
            most = max(map(len, ranks))
            batches += [zero_weight_batch(batches[0])] * (most - len(batches))
        own = rows[np.concatenate(ranks[self.rank])]
        return RankStep(batches, self.collator.target_tokens(rows), own)


def zero_weight_batch(batch: Batch) -> Batch:
    """One sequence of that micro-batch; the loss counts nothing of it."""
    inputs = {name: tensor[:1] for name, tensor in batch.inputs.items()}
    labels = torch.full_like(batch.labels[:1], IGNORED)
    area = batch.area // batch.samples
    return Batch(inputs, labels, samples=0, tokens=0, target_tokens=0, area=area)


def load_steps(steps: Steps, numbers: Sequence[int], loaders: int) -> "DataLoader[RankStep]":
    """Those steps, in order; `loaders` processes prepare them ahead."""
    return DataLoader(
        steps,
        batch_size=None,
        sampler=numbers,
        num_workers=loaders,
        multiprocessing_context="spawn" if loaders else None,
        worker_init_fn=_begin_loader,
    )


def _begin_loader(_: int) -> None:
    """Makes a loader heed no signal, and lets its sockets have a short path.

    SLURM and terminals signal the loaders too, but the trainer needs them until its step has ended.
    multiprocessing makes a socket in TMPDIR; with a path of more than 107 bytes the loader would hang.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    folder = os.open(tempfile.gettempdir(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    tempfile.tempdir = f"/proc/{os.getpid()}/fd/{folder}"  # the trainer opens it too


def loaders_memory() -> int:
    """Bytes of this process's loaders, pages that they share counted once."""
    return sum(proportional(child.pid) for child in psutil.Process().children(recursive=True))
