"""What the commands say of numbers that are not finite: exit 1, one line, no traceback, nothing spoilt."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autotune.errors import DivergedError, ModelError
from tests.support import tiny
from tests.support.commands import chatlm, steps
from tests.support.poisoned import ROWS, poisoned, rows_with_fire
from tests.support.processes import each_within
from trainer.config.settings import WorkloadSettings
from trainer.data.sample_order import SampleOrder
from trainer.workload import SftWorkload, build

nothing_hangs = each_within(300)
TRAIN = (
    "--profile", "small", "--device", "cpu", "--data", "rows.jsonl", "--max-steps", "20",
    "--seed", "0", "--checkpoint-every", "1", "--output-dir", "run",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return poisoned(tmp_path_factory.mktemp("model") / "gpt2")


def test_two_processes_stop_at_a_row_that_one_of_them_has(model: Path, tmp_path: Path) -> None:
    """The row of the one is named once; the checkpoint of the step before is kept."""
    (bad,) = SampleOrder(ROWS, 0).take(20, 1)  # of the second step
    rows_with_fire(tmp_path / "rows.jsonl", bad)

    done = chatlm(
        tmp_path, "train", *TRAIN, "--plain", "--model", str(model), "--num-processes", "2"
    )  # fmt: skip

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("chatlm: ")]
    assert message.startswith(
        f"chatlm: step 2 was not taken: its loss is not finite (inf or NaN); it comes from 1 of its 16 "
        f"rows: {bad + 1}; run/checkpoint-1 is the last checkpoint; "
    )
    assert [step["step"] for step in steps(tmp_path / "run")] == [1]


def test_under_a_launcher_it_is_the_same(model: Path, tmp_path: Path) -> None:
    """`python -m chatlm.trainer` prints the message alone."""
    rows_with_fire(tmp_path / "rows.jsonl", *range(ROWS))

    done = subprocess.run(
        [sys.executable, "-P", "-m", "chatlm.trainer", *TRAIN, "--model", str(model)],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert (
        "chatlm: step 1 was not taken: its loss is not finite (inf or NaN); all of its 16 rows"
        in (done.stderr)
    )


def worker_of(model: Path, folder: Path) -> SftWorkload:
    """What a tuning's worker probes, in this process."""
    settings = WorkloadSettings(model=str(model), data=(str(folder / "rows.jsonl"),))
    return build(settings.as_json() | {"effective": 4, "effective_fixed": False})


def test_a_model_with_an_infinite_weight_is_not_tuned(tmp_path: Path) -> None:
    """Its worker refuses it before a probe; a test of refused workloads has what the command then does."""
    broken = tiny.tiny("t5")
    with torch.no_grad():
        broken.shared.weight[7] = torch.inf
    broken.save_pretrained(tmp_path / "t5")
    tiny.tokenizer().save_pretrained(tmp_path / "t5")
    rows_with_fire(tmp_path / "rows.jsonl")

    with pytest.raises(ModelError) as raised:
        worker_of(tmp_path / "t5", tmp_path)

    assert str(raised.value).startswith(
        f"shared.weight in the weights of {tmp_path}/t5 is not finite (inf or NaN); "
    )


def test_a_model_without_a_loss_is_not_tuned(model: Path, tmp_path: Path) -> None:
    """A probe's first step sees it: the longest row has no loss. Tests of the prober have the worker's words."""
    long = {"prompt": "火" * 60, "response": "答"}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(long)}\n" * 8)

    workload = worker_of(model, tmp_path)
    workload.forward_backward(4)
    with pytest.raises(DivergedError) as raised:
        workload.optimizer_step()

    assert str(raised.value) == (
        f"a loss of {model} is not finite (inf or NaN) in fp32, at a learning rate of 1e-06: a run "
        f"would stop there; use --precision fp32 or bf16, or look at the model's weights and the longest rows"
    )
