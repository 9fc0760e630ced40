"""What the supervisor says about a training run."""

import os
from pathlib import Path

import pytest

from autotune.cause import Cause
from autotune.errors import ChatlmError
from autotune.workers.group import WorkerGroup
from autotune.workers.messages import Failed
from autotune.workers.watchdog import Watchdog
from tests.support.runs import train_job
from trainer.events import FromTrainer
from trainer.supervisor.relay import Relay, hang_notice


def test_a_run_that_may_hang_is_told_with_the_processes_to_look_at() -> None:
    """With the limit that it passed, and the slowest step."""
    watchdog = Watchdog()
    watchdog.step(0.5)

    told = hang_notice(watchdog, (11, 12))

    assert "no message for 10 minutes, and the slowest step took 0.5 s" in told
    assert "`py-spy dump --pid N` shows where a process is (11, 12)" in told


def test_what_a_worker_refuses_keeps_its_hint_apart(tmp_path: Path) -> None:
    """The command line joins the two, and nothing before it."""
    job = train_job(tmp_path)
    refused = Failed(cause=Cause.REFUSED, text="a row is empty", hint="drop it")
    with (
        WorkerGroup[FromTrainer](
            ["true"],
            messages=FromTrainer,
            environment=os.environ,
            log_path=job.log_path,
            host=job.host,
        ) as workers,
        pytest.raises(ChatlmError) as caught,
    ):
        Relay(job, workers, (), is_compared=False).take([(0, refused)])

    assert (caught.value.what, caught.value.hint) == ("a row is empty", "drop it")
