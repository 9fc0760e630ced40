"""A tuning that has its answer, and its end."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import pytest

import profiles
from autotune.trial import Trial
from autotune.tuning.prober import DataWait, WorkerProber
from autotune.verdict import Verdict
from trainer.config.options import AutotuneOptions
from trainer.supervisor.job import open_tune_job
from trainer.supervisor.tuning import fraction_size, measure_extras, run_tuning


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


def test_unequal_ranks_measure_the_fractions_with_the_smallest_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card of the smallest does not hold the largest."""
    monkeypatch.chdir(tmp_path)
    asked: list[int] = []

    class Fake:
        def measure_memory_fractions(self, size: int) -> None:
            asked.append(size)

        def data_wait(self, size: int, *, loaders: int, busy: float) -> DataWait:
            return DataWait(seconds=0.0, host_peak=0)

    trial = Trial(
        size=90, sizes=(90, 40), verdict=Verdict.FITS, peak=1, seconds=1.0, samples_per_second=1.0
    )
    with open_tune_job(
        AutotuneOptions(device="cpu", vram_limit="400MiB", num_processes=2),
        workload="tests.support.command_toy:build",
        listen=lambda: nullcontext((lambda event: None, tmp_path / "log")),
    ) as job:
        measure_extras(job, cast(WorkerProber, Fake()), trial)

    assert asked == [10]
