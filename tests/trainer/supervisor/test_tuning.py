"""A tuning that has its answer, and its end."""

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

import profiles
from autotune.tuning.prober import WorkerProber
from trainer.config.options import AutotuneOptions
from trainer.supervisor.job import open_tune_job
from trainer.supervisor.tuning import fraction_size, run_tuning


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


@pytest.mark.parametrize(
    ("size", "kind", "expected"),
    [(184, "cuda", 184), (3, "cuda", 3), (184, "cpu", 46), (20, "cpu", 8), (6, "cpu", 6)],
)
def test_fractions_are_measured_with_a_part_of_the_answer_on_a_cpu_alone(
    size: int, kind: str, expected: int
) -> None:
    assert fraction_size(size, kind) == expected
