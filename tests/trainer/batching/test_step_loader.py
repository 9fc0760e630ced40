"""The loader of a run, as far as it is made of processes."""

import os
import signal
from typing import Any

from autotune.devices.processes import descendants
from trainer.batching.step_loader import load_steps


def test_a_signal_that_reaches_the_loaders_ends_nothing() -> None:
    """As SLURM's and a terminal's do: the trainer has a step to end and a checkpoint to write."""
    steps: Any = [10, 11, 12, 13, 14, 15]
    own = set(descendants(os.getpid()))
    items = iter(load_steps(steps, range(6), 1))
    first = next(items)

    for pid in set(descendants(os.getpid())) - own:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)

    assert [first, *items] == steps
