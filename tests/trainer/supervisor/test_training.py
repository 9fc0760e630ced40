"""How a run that runs out of memory resumes, over made-up runs; `end_to_end/test_out_of_memory` has real ones."""

from pathlib import Path

import pytest

from autotune.errors import ChatlmError, DeviceError
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
