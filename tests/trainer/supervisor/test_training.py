"""How a run that runs out of memory resumes, over made-up runs; `end_to_end/test_out_of_memory` has real ones."""

from pathlib import Path

import pytest

from autotune.errors import ChatlmError, DeviceError, OutOfMemory
from tests.support.runs import train_job
from trainer.supervisor import training
from trainer.supervisor.job import TrainJob


def test_a_device_that_others_filled_meanwhile_is_told_with_both_hints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What to try on the device comes first; each stays a hint."""
    ends = iter([training.RanOutOfMemory("out of memory"), DeviceError("others hold all", "wait")])

    def supervise(job: TrainJob, *, is_compared: bool) -> None:
        raise next(ends)

    monkeypatch.setattr(training, "supervise", supervise)

    with pytest.raises(ChatlmError) as caught:
        training.finish(train_job(tmp_path), is_compared=False)

    assert caught.value.what == "others hold all"
    assert caught.value.hint == "wait; the same command resumes the run"


def test_a_run_is_halved_until_nothing_is_finer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it fails with what the last one said."""
    tried: list[int] = []

    def supervise(job: TrainJob, *, is_compared: bool) -> None:
        tried.append(job.settings.micro_batch)
        raise training.RanOutOfMemory(f"out of memory at micro-batch {tried[-1]}", "use less")

    monkeypatch.setattr(training, "supervise", supervise)

    with pytest.raises(OutOfMemory) as caught:
        training.finish(train_job(tmp_path), is_compared=False)

    assert tried == [4, 2, 1]
    assert str(caught.value) == "out of memory at micro-batch 1; use less"
