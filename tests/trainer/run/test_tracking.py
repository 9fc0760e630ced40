"""TensorBoard is told what the run's own files hold."""

from pathlib import Path

from trainer.config.settings import TrainSettings, WorkloadSettings
from trainer.model.accelerator import make_accelerator
from trainer.run.tracking import flat, start_tracking, track

SETTINGS = TrainSettings(
    profile="small",
    workload=WorkloadSettings(data=("a.jsonl", "b.jsonl")),
    micro_batch=1,
    effective_batch=4,
    track=("tensorboard",),
)


def test_tensorboards_own_reader_finds_the_losses(tmp_path: Path) -> None:
    """Below the run's folder: training and evaluation by step, and no text among the figures."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accelerator = make_accelerator(SETTINGS.workload, track=SETTINGS.track, tracking=tmp_path)
    start_tracking(accelerator, SETTINGS, tmp_path, done=0)
    for step, loss in ((1, 3.5), (2, 2.25)):
        track(accelerator, "train", {"step": step, "loss": loss, "tokens": 10})
    track(accelerator, "evaluation", {"step": 2, "loss": 2.5, "bleu": None, "words": "zh"})
    accelerator.end_training()

    reader = EventAccumulator(str(tmp_path / "chatlm"))
    reader.Reload()
    losses = [(e.step, e.value) for e in reader.Scalars("train/loss")]
    assert losses == [(1, 3.5), (2, 2.25)]
    assert [e.value for e in reader.Scalars("evaluation/loss")] == [2.5]
    assert "evaluation/words" not in reader.Tags()["scalars"]


def test_settings_are_told_as_plain_values() -> None:
    """Nested by name; no None, which TensorBoard refuses."""
    told = flat(SETTINGS.as_json())

    assert told["workload/data"] == "a.jsonl b.jsonl"
    assert told["effective_batch"] == 4
    assert told["max_steps"] == ""
