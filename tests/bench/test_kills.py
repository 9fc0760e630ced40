"""What the bench of kills makes of two runs; the fifty kills themselves are `make bench`'s."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from bench.kills import Kill, compare
from bench.small_run import look_at
from trainer.artifacts.manifest import write_manifest


def kill(**changes: Any) -> Kill:
    values: dict[str, Any] = {
        "processes": 2, "micro_batch": 4, "moment": "saving", "victim": "rank 1",
        "had_hidden_checkpoint": True, "evaluating": False, "steps_said": 8, "checkpoint": 6,
        "steps_lost": 2, "faults": (),
    }  # fmt: skip
    return Kill(**{**values, **changes})


def run(folder: Path, *, weight: float = 1.0, loss: float = 2.0, samples: int = 16) -> Path:
    """A finished run of one step."""
    folder.mkdir()
    save_file({"weight": np.array([0.0, weight], np.float32)}, folder / "model.safetensors")
    step = {
        "step": 1, "epoch": 0.5, "samples": samples, "tokens": 9, "target_tokens": 5, "loss": loss,
        "grad_norm": 3.0, "learning_rate": 0.1,
    }  # fmt: skip
    (folder / "metrics.jsonl").write_text(json.dumps(step) + "\n")
    (folder / "evaluations.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    return folder


def test_runs_that_end_alike_are_the_same(tmp_path: Path) -> None:
    """To 1e-5; what was lost and hit is counted."""
    found = compare(
        run(tmp_path / "whole"),
        run(tmp_path / "killed", weight=1.000001),
        [kill(), kill(victim="supervisor", steps_lost=3)],
    )

    assert found["same"]
    assert found["largest_weight_difference"] == pytest.approx(1e-6, rel=0.1)
    assert (found["most_steps_lost"], found["kills_of_the_supervisor"]) == (3, 1)
    assert found["kills_with_a_half_written_checkpoint"] == 2


@pytest.mark.parametrize("change", [{"weight": 1.001}, {"loss": 2.001}, {"samples": 32}])
def test_runs_that_part_are_not_the_same(change: dict[str, Any], tmp_path: Path) -> None:
    """In a weight, in a loss, or in the samples of a step."""
    found = compare(run(tmp_path / "whole"), run(tmp_path / "killed", **change), [kill()])

    assert not found["same"]


def test_a_checkpoint_that_did_not_load_is_a_fault(tmp_path: Path) -> None:
    """Whatever the weights are in the end."""
    whole, killed = run(tmp_path / "whole"), run(tmp_path / "killed")

    found = compare(whole, killed, [kill(faults=("checkpoint-3: model.safetensors is altered",))])

    assert not found["same"]


def test_checkpoints_are_read_by_the_library_too(tmp_path: Path) -> None:
    """The newest whole one, and the faults of the others."""
    for step in (3, 6):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in ("model", "optimizer"):
            save_file({"weight": np.ones(2)}, folder / f"{name}.safetensors")
        (folder / "state.json").write_text(
            json.dumps({"format": 1, "step": step, "frozen": None, "scaler": None, "optimizer": {}})
        )
        write_manifest(folder)
    (tmp_path / "checkpoint-6" / "model.safetensors").write_bytes(b"cut off")

    newest, (fault,) = look_at(tmp_path)

    assert newest == 3
    assert fault.startswith("checkpoint-6: model.safetensors has 7 bytes instead of ")
