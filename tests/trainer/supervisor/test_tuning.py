"""A tuning that has its answer, and its end."""

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

import profiles
from autotune.tuning.prober import WorkerProber
from trainer.config.options import AutotuneOptions
from trainer.supervisor.job import open_tune_job
from trainer.supervisor.tuning import run_tuning


def test_ctrl_c_while_the_workers_are_ended_loses_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes them half a second."""
    monkeypatch.chdir(tmp_path)
    close = WorkerProber.close

    def interrupted(prober: WorkerProber) -> None:
        close(prober)
        if sys.exception() is None:  # --quick ends the tuning where it would start a worker
            raise KeyboardInterrupt

    monkeypatch.setattr(WorkerProber, "close", interrupted)
    options = AutotuneOptions(device="cpu", vram_limit="400MiB", max_batch=2)
    with (
        open_tune_job(
            options,
            workload="tests.support.command_toy:build",
            listen=lambda: nullcontext((lambda event: None, tmp_path / "log")),
        ) as job,
        pytest.raises(KeyboardInterrupt),
    ):
        run_tuning(job)

    assert profiles.load("profiles/tuned.toml").batch.micro_batch_size == 2
