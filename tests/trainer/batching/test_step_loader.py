"""The loader of a run, as far as it is made of processes."""

import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.support.processes import deadline
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


def test_loaders_send_tensors_whatever_the_path_of_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """multiprocessing makes a socket there, whose path has at most 107 bytes; the loader hung."""
    folder = tmp_path.joinpath(*["d" * 60] * 3)
    folder.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(folder))
    steps: Any = [torch.full((1000,), number) for number in range(3)]

    with deadline(300):
        items = list(load_steps(steps, range(3), 1))

    assert [int(item[0]) for item in items] == [0, 1, 2]
