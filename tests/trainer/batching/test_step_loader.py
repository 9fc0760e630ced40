"""The loader of a run, as far as it is made of processes."""

import signal
from typing import Any

import psutil

from trainer.batching.step_loader import load_steps


def test_a_signal_that_reaches_the_loaders_ends_nothing() -> None:
    """As SLURM's and a terminal's do: the trainer has a step to end and a checkpoint to write."""
    steps: Any = [10, 11, 12, 13, 14, 15]
    own = set(psutil.Process().children(recursive=True))
    items = iter(load_steps(steps, range(6), 1))
    first = next(items)

    for loader in set(psutil.Process().children(recursive=True)) - own:
        loader.send_signal(signal.SIGINT)
        loader.send_signal(signal.SIGTERM)

    assert [first, *items] == steps
