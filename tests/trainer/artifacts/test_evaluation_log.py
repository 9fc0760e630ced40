"""What is kept of evaluations, what a resumed run reads there, and when a run gives up."""

import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import UsageError
from tests.support.runs import chosen, ended, notices, rows_file, run
from trainer.artifacts.evaluation_log import Best, EvaluationHistory, evaluation_record
from trainer.artifacts.jsonl_log import JsonlLog
from trainer.artifacts.loss_plot import draw_loss, smoothed
from trainer.config.settings import TrainSettings, WorkloadSettings
from trainer.config.validation import check_training
from trainer.events import Evaluated, Sample

SAMPLE = Sample(prompt="从一\u2028数到二", reference="一、二", answer="一")
EVENT = Evaluated(
    step=7, loss=0.5, bleu=31.0, chrf=42.0, exact_match=0.25, words="zh", generated_rows=4,
    seconds=1.5, samples=(SAMPLE,),
)  # fmt: skip


def settings(**values: Any) -> TrainSettings:
    return TrainSettings(
        profile="small", workload=WorkloadSettings(), micro_batch=1, effective_batch=4, **values
    )


def read_back(event: Evaluated, folder: Path) -> dict[str, Any]:
    """What the file of evaluations holds of it."""
    log = JsonlLog(folder / "evaluations.jsonl")
    log.add(evaluation_record(event))
    (record,) = log.read()
    return record


def test_an_evaluation_comes_back_from_its_file(tmp_path: Path) -> None:
    """One line, whatever line ends a text holds; the perplexity beside the loss."""
    assert read_back(EVENT, tmp_path) == {
        **asdict(EVENT),
        "samples": [asdict(SAMPLE)],
        "perplexity": pytest.approx(math.exp(0.5)),
    }


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1e6])
def test_a_diverged_loss_is_written_as_json(tmp_path: Path, loss: float) -> None:
    """JSON has no infinity, and a double no such exponential."""
    record = read_back(Evaluated(step=1, loss=loss), tmp_path)

    assert record["loss"] == (loss if math.isfinite(loss) else None)


def test_any_lower_loss_is_progress() -> None:
    """By however little; an equal one, or none at all, is not."""
    progress = EvaluationHistory()
    counts = []

    for step, loss in enumerate([2.0, 1.0, 1.0, math.nan, 1.0 - 1e-9, 1.5]):
        progress = progress.then(step, loss)
        counts.append(progress.since_best)

    assert counts == [0, 0, 1, 2, 0, 1]
    assert progress.best == Best(step=4, loss=1.0 - 1e-9)


def test_a_resumed_run_knows_how_long_it_has_waited(tmp_path: Path) -> None:
    """From the file alone, where a diverged loss is null."""
    records = [{"step": s, "loss": x} for s, x in ((10, 0.5), (20, None), (30, 0.7))]

    progress = EvaluationHistory.of(records)

    assert progress.since_best == 2
    assert progress.early_stop_text(30, 90) == (
        "stopped at step 30 of 90, after 2 evaluation(s) without a lower loss; the model is this "
        "step's, the lowest evaluation loss was 0.500 at step 10"
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"eval_every": 0}, "--eval-every 0 is out of range; give 1 or more"),
        ({"checkpoint_every": 0}, "--checkpoint-every 0 is out of range; give 1 or more"),
        ({"keep_checkpoints": 0}, "--keep-checkpoints 0 is out of range; give 1 or more"),
        ({"patience": 0}, "--patience 0 is out of range; give 1 or more"),
        ({"generate_rows": -1}, "--generate-rows -1 is out of range; give 0 or more"),
        ({"max_new_tokens": 0}, "--max-new-tokens 0 is out of range; give 1 or more"),
        (
            {"epochs": 1e308},
            "--epochs 1e+308 is out of range; give a number above 0, at most 1,000,000",
        ),
        ({"track": ("mlflow",)}, "--track mlflow is not known; there are tensorboard and wandb"),
    ],
)
def test_what_cannot_be_meant_is_refused(values: dict[str, Any], said: str) -> None:
    """Before anything is started."""
    with pytest.raises(UsageError) as caught:
        check_training(settings(**values))

    assert str(caught.value) == said


def test_patience_needs_evaluations() -> None:
    """Data of one's own are evaluated on nothing unless that is given: the run would never end early."""
    own = replace(settings(patience=3), workload=WorkloadSettings(data=("a.jsonl",)))

    with pytest.raises(UsageError, match="give --eval-data too"):
        check_training(own)

    assert check_training(replace(own, eval_data=("b.jsonl",))).patience == 3


def test_a_tracker_that_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate would go on without it."""
    monkeypatch.setattr(sys, "path", [])

    with pytest.raises(UsageError) as caught:
        check_training(settings(track=("wandb",)))

    assert str(caught.value) == (
        "--track wandb needs a package that is not installed: pip install wandb"
    )


def test_drawing_loads_no_torch_and_says_what_it_lacks(tmp_path: Path) -> None:
    """`python -m trainer.artifacts.loss_plot`, where matplotlib cannot be imported."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "learning_rate": 0.1}\n')
    script = (
        "import sys\nsys.modules['matplotlib'] = None\nfrom trainer.artifacts import loss_plot\n"
        "assert 'torch' not in sys.modules\nsys.argv = ['plot', sys.argv[1]]\nloss_plot.main()\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=300
    )

    assert done.returncode == 1
    assert (
        "the plot needs matplotlib, which is not installed; run `pip install matplotlib`"
        in done.stderr
    )


def test_one_step_is_enough_for_a_picture(tmp_path: Path) -> None:
    """Without evaluations, with a rate of zero, beside a step that diverged."""
    records = [
        {"step": 1, "loss": 2.0, "learning_rate": 0.0},
        {"step": 2, "loss": None, "learning_rate": 0.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))

    files = draw_loss(tmp_path)

    assert [file.name for file in files] == ["loss.png", "loss.svg"]
    assert all(file.stat().st_size > 1000 for file in files)


def test_the_smooth_line_does_not_lag() -> None:
    """Of a straight line it is the line itself, but for its ends."""
    line = [float(value) for value in range(100)]

    assert smoothed(line)[10:-10] == pytest.approx(line[10:-10])


def test_a_run_without_progress_ends_as_finished(tmp_path: Path) -> None:
    """A rate that ruins the model: stopped by its patience, the model saved, TensorBoard told."""
    rows = str(rows_file(tmp_path / "rows.jsonl", 64))
    chosen_settings = chosen(
        "small", tmp_path / "run", data=(rows,), eval_data=(rows,), max_steps=40, learning_rate=5,
        eval_every=2, patience=2, micro_batch=16, generate_rows=0, track=("tensorboard",),
    )  # fmt: skip

    said = run(chosen_settings)

    kept = JsonlLog(tmp_path / "run/evaluations.jsonl").read()
    progress, last = EvaluationHistory.of(kept), kept[-1]["step"]
    assert [record["step"] for record in kept] == list(range(2, last + 1, 2))
    assert progress.since_best == 2
    assert last < 40
    assert progress.early_stop_text(last, 40) in notices(said)
    assert ended(said).result["steps"] == last
    assert ended(said).interrupted is False
    assert kept[-1]["bleu"] is None
    assert json.loads((tmp_path / "run/run.json").read_text())["finished"] is True
    assert (tmp_path / "run/model.safetensors").exists()
    assert list((tmp_path / "run/tracking/chatlm").glob("events.out.tfevents.*"))
