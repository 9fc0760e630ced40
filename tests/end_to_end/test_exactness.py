"""One run however it is cut: losses and gradient norms of each step to 1e-5, by real processes and in this one.

`python -m bench.exactness` holds many more cuts against each other. The model's activation is smooth: at a
ReLU's kink float32's rounding decides which gradient it is.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autotune.plan import Plan
from bench.exactness import EFFECTIVE, profile_of
from bench.small import save_small
from tests.support import tiny
from tests.support.commands import output_of, steps
from tests.support.runs import chosen, rows_file
from trainer.config.settings import WorkloadSettings
from trainer.model.accelerator import make_accelerator
from trainer.model.engine import Engine
from trainer.pretrained.loading import load_model
from trainer.reading.readers import bundled
from trainer.run.loop import take_steps
from trainer.run.setup import prepare
from trainer.run.state import Run

FLAGS = (
    "--device", "cpu", "--plain", "--dropout", "0", "--precision", "fp32", "--seed", "7",
    "--learning-rate", "3e-3", "--max-steps", "8",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small("t5", tmp_path_factory.mktemp("models") / "t5")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows_file(tmp_path_factory.mktemp("rows") / "rows.jsonl", 200)


@pytest.fixture(scope="module")
def whole(
    model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """The steps of one process that takes each at once."""
    folder = tmp_path_factory.mktemp("whole")
    assert take_steps(started(model, rows, folder, size=EFFECTIVE, stop_at=9))
    return steps(folder / "run")


def train(model: Path, rows: Path, folder: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """The run cut so, one size a process."""
    profile = folder / "cut.toml"
    profile.write_text(profile_of(sizes))
    output_of(
        folder, "train", *FLAGS, "--model", str(model), "--data", str(rows), "--profile", str(profile),
        "--num-processes", str(len(sizes)), "--output-dir", "run",
    )  # fmt: skip
    return steps(folder / "run")


def agree(own: list[dict[str, Any]], reference: list[dict[str, Any]]) -> None:
    """Every step, to the last."""
    for step, other in zip(own, reference, strict=True):
        assert step["tokens"] == other["tokens"]
        assert step["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert step["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)


def started(model: Path, rows: Path, folder: Path, *, size: int = 8, stop_at: int) -> Run:
    """The same run in this process, in micro-batches of that size; it stops after each such step."""
    profile = folder / "start.toml"
    profile.write_text(profile_of([size]))
    settings = chosen(
        profile, folder / "run", model=str(model), data=(str(rows),), precision="fp32",
        dropout=0.0, seed=7, learning_rate=3e-3, max_steps=8,
    )  # fmt: skip
    runs: list[Run] = []
    runs.append(
        prepare(settings, lambda message: None, lambda: None,
                lambda: bool(runs) and runs[0].done % stop_at == 0)
    )  # fmt: skip
    return runs[0]


def test_a_cut_may_change_between_two_steps(
    model: Path, rows: Path, whole: list[dict[str, Any]], tmp_path: Path
) -> None:
    """In mid-run, in one process: 8 sequences at once, then 1, then 3."""
    run = started(model, rows, tmp_path, stop_at=3)

    for size in (8, 1, 3):
        run.plan = Plan(micro_batch=size, effective_batch=EFFECTIVE, world_size=1)
        finished = take_steps(run)

    assert finished
    found = steps(tmp_path / "run")
    assert found[3]["micro_batches"] > found[0]["micro_batches"]
    agree(found, whole)


def test_three_processes_take_the_steps_of_one(
    model: Path, rows: Path, whole: list[dict[str, Any]], tmp_path: Path
) -> None:
    """One process stops after the third step; three of unequal shares resume it with another profile.

    Over gloo; two nodes that begin a run together have a test of their own.
    """
    run = started(model, rows, tmp_path, stop_at=3)
    assert not take_steps(run)

    found = train(model, rows, tmp_path, [4, 3, 1])

    assert len(found) == 8
    agree(found, whole)


def test_with_dropout_a_cut_changes_no_distribution(model: Path) -> None:
    """Means over many draws of the noise: of the loss, and of the gradient's norm."""
    loaded = load_model(str(model), dropout=0.2, seed=7)
    collator = tiny.collator(loaded.model, loaded.encoder, bundled("train"), longest=16)
    workload = WorkloadSettings(model=str(model), dropout=0.2)
    engine = Engine(make_accelerator(workload), loaded.model, workload, clip_norm=float("inf"))
    rows = np.arange(6)

    def draws(size: int) -> np.ndarray[Any, Any]:
        batches = [collator.batch(rows[i : i + size]) for i in range(0, len(rows), size)]
        tokens = collator.target_tokens(rows)
        found = []
        for seed in range(40):
            torch.manual_seed(1000 * size + seed)
            loss = engine.forward_backward(batches, target_tokens=tokens).item() / tokens
            found.append((loss, engine.optimizer_step(0.0)))
        return np.array(found)  # (draws, loss and norm)

    once, cut_up = draws(6), draws(1)

    errors = np.sqrt(once.var(0) / len(once) + cut_up.var(0) / len(cut_up))
    assert once.std(0).min() > 0  # there is noise
    assert (np.abs(once.mean(0) - cut_up.mean(0)) < 4 * errors).all()
    assert not np.allclose(once[:8], cut_up[:8], rtol=1e-5)
