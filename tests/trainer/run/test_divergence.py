"""A run whose numbers are not finite stops, names rows, and leaves its last good checkpoint."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from autotune.errors import DivergedError, ModelError
from tests.support import finite_script, tiny
from tests.support.commands import steps
from tests.support.diverged_script import BAD
from tests.support.pair_script import found_by
from tests.support.poisoned import ROWS, poisoned, rows_with_fire
from tests.support.runs import Messages, ended, notices, rows_file, run, settings
from trainer.config.settings import TrainSettings
from trainer.data.sample_order import PlainSteps, SampleOrder
from trainer.model.engine import MOST_SKIPS
from trainer.run.divergence import listed, note_skipped_steps
from trainer.run.loop import take_steps
from trainer.run.setup import prepare


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return poisoned(tmp_path_factory.mktemp("model") / "gpt2")


def with_model(model: Path, rows: Path, output: Path, **changes: Any) -> TrainSettings:
    chosen = settings(rows, output, **changes)
    return replace(chosen, workload=replace(chosen.workload, model=str(model)))


def is_whole(folder: Path) -> bool:
    """Whether each number of the weights is finite."""
    return all(t.isfinite().all() for t in load_file(folder / "model.safetensors").values())


def test_a_row_without_a_loss_stops_the_run_before_its_step(model: Path, tmp_path: Path) -> None:
    """Step and row are named, the checkpoint is kept, and there is no final model."""
    rows = rows_with_fire(tmp_path / "rows.jsonl", BAD)
    output = tmp_path / "run"

    with pytest.raises(DivergedError) as raised:
        run(with_model(model, rows, output))
    with pytest.raises(DivergedError) as again:  # the same command resumes, and gets there again
        run(with_model(model, rows, output))

    assert str(raised.value) == (
        f"step 3 was not taken: its loss is not finite (inf or NaN); it comes from 1 of its 8 rows: {BAD + 1}; "
        f"{output}/checkpoint-2 is the last checkpoint; look at these rows, counted from 1 over all "
        f"--data; if they are good, lower --learning-rate; --model {output}/checkpoint-2 with another "
        f"--output-dir trains on from there"
    )
    assert str(again.value) == str(raised.value)
    assert [step["step"] for step in steps(output)] == [1, 2]
    assert all(math.isfinite(step["loss"]) for step in steps(output))
    assert is_whole(output / "checkpoint-2")
    assert not (output / "config.json").exists()


def test_two_sharded_processes_stop_at_a_row_that_one_of_them_has(pair: Path) -> None:
    """Both name it; `chatlm train` says the same of two that hold whole weights."""
    for message in found_by("diverged", pair):
        assert message.startswith(
            f"step 3 was not taken: its loss is not finite (inf or NaN); it comes from 1 of its 8 rows: {BAD + 1}; "
            f"{pair}/diverged/checkpoint-2 is the last checkpoint; "
        )
    assert [step["step"] for step in steps(pair / "diverged")] == [1, 2]


def test_a_model_without_any_loss_is_said_at_the_first_step(model: Path, tmp_path: Path) -> None:
    """Its learning rate has changed nothing yet."""
    rows = rows_with_fire(tmp_path / "rows.jsonl", *range(ROWS))

    with pytest.raises(DivergedError) as raised:
        run(with_model(model, rows, tmp_path / "run"))

    assert raised.value.what.startswith(
        "step 1 was not taken: its loss is not finite (inf or NaN); all of its 8 rows have such a loss: "
    )
    assert raised.value.what.endswith(" and 3 more; no checkpoint was saved yet")
    assert raised.value.hint == (
        "no update was made yet, so look at the model's weights and these rows, counted from 1; "
        "--fresh or another --output-dir starts anew"
    )


def test_a_gradient_that_is_not_finite_names_the_rows_of_its_step(tmp_path: Path) -> None:
    """No forward pass tells which of them it is."""
    ready = prepare(
        settings(rows_file(tmp_path / "rows.jsonl", ROWS), tmp_path / "run"),
        lambda message: None, lambda: None, lambda: False,
    )  # fmt: skip
    finite_script.spoil_gradient(ready.engine)

    with pytest.raises(DivergedError) as raised:
        take_steps(ready)

    first = {int(row) for row in PlainSteps(SampleOrder(ROWS, 3), 8).step(0)}
    assert f"its gradient is not finite (inf or NaN); its 8 rows are {listed(first)}; " in str(
        raised.value
    )


def test_weights_that_overflow_in_a_step_are_not_saved(tmp_path: Path) -> None:
    """Its loss and gradient were finite; no checkpoint and no model is written."""
    rows = rows_file(tmp_path / "rows.jsonl", ROWS)
    output = tmp_path / "run"

    with pytest.raises(DivergedError) as raised:
        run(
            settings(
                rows, output, max_steps=1, learning_rate=3e38, weight_decay=1.0, checkpoint_every=1
            )
        )

    assert "after step 1 shared.weight is not finite (inf or NaN), so nothing is saved" in str(
        raised.value
    )
    assert not list(output.glob("checkpoint-*"))
    assert not (output / "model.safetensors").exists()


def test_a_learning_rate_that_is_far_too_high_keeps_what_was_good(tmp_path: Path) -> None:
    """Every checkpoint that it leaves holds finite weights, and every logged loss is finite."""
    rows = rows_file(tmp_path / "rows.jsonl", ROWS)

    with pytest.raises(DivergedError, match="lower --learning-rate"):
        run(settings(rows, tmp_path / "run", learning_rate=1e30, max_steps=40))

    assert all(map(is_whole, (tmp_path / "run").glob("checkpoint-*")))
    assert all(math.isfinite(step["loss"]) for step in steps(tmp_path / "run"))


def test_an_evaluation_without_a_loss_is_told_and_is_never_the_best(
    model: Path, tmp_path: Path
) -> None:
    """The weights are finite, so the run continues to its end."""
    rows = rows_file(tmp_path / "rows.jsonl", ROWS)
    asked = rows_with_fire(tmp_path / "asked.jsonl", 3)
    output = tmp_path / "run"

    said = run(with_model(model, rows, output, eval_data=(str(asked),), eval_every=4))

    result = ended(said).result
    assert (result["best_step"], result["best_loss"]) == (None, None)
    assert (
        "the evaluation after step 4 has a loss that is not finite (inf or NaN): it counts as worse than "
        "every other; look at the rows of --eval-data"
    ) in notices(said)
    lines = (output / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [None, None]
    assert (output / "config.json").exists()


def test_a_model_with_a_weight_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    """Before any step; the weight is named."""
    broken = tiny.tiny("t5")
    with torch.no_grad():
        broken.shared.weight[7] = torch.inf
    broken.save_pretrained(tmp_path / "t5")
    tiny.tokenizer().save_pretrained(tmp_path / "t5")
    rows = rows_file(tmp_path / "rows.jsonl", ROWS)

    with pytest.raises(ModelError) as raised:
        run(with_model(tmp_path / "t5", rows, tmp_path / "run"))

    assert str(raised.value) == (
        f"shared.weight in the weights of {tmp_path}/t5 is not finite (inf or NaN); use an earlier "
        f"checkpoint of that model, or download it again"
    )


class Skipping:
    """A scaler whose steps are skipped, as GPUs' in fp16."""

    def step(self, optimizer: Any, closure: Any) -> None:
        pass

    def update(self) -> None:
        pass

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return loss

    def state_dict(self) -> dict[str, float]:
        return {"scale": 1.0}


def test_skipped_steps_are_counted_and_too_many_stop_the_run(tmp_path: Path) -> None:
    """Each is a step of the run; the error names the precision to use."""
    chosen = settings(rows_file(tmp_path / "rows.jsonl", ROWS), tmp_path / "run", max_steps=40)
    said: Messages = []
    ready = prepare(chosen, said.append, lambda: None, lambda: False)
    optimizer: Any = ready.engine.optimizer
    ready.engine.accelerator.scaler = optimizer.scaler = Skipping()
    optimizer.__setstate__(optimizer.__dict__)
    finite_script.spoil_gradient(ready.engine)

    with pytest.raises(DivergedError) as raised:
        take_steps(ready)

    assert note_skipped_steps(ready) == MOST_SKIPS
    assert notices(said)[-1] == "fp16's loss scale skipped 16 of 16 steps"
    assert (
        "step 17 was not taken: 17 steps in a row had gradients that are not finite in fp16"
        in str(raised.value)
    )
    assert "use --precision bf16 or fp32, or a lower --learning-rate" in str(raised.value)


def test_the_first_rows_are_listed_and_the_rest_counted() -> None:
    """From 1, in order."""
    assert listed({8}) == "9"
    assert listed({8, 2, 4}) == "3, 5 and 9"
    assert listed(set(range(1200, 1208))) == "1,201, 1,202, 1,203, 1,204, 1,205 and 3 more"
