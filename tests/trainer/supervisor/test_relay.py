"""What the supervisor says about a training run."""

from autotune.workers.watchdog import Watchdog
from trainer.supervisor.relay import hang_notice


def test_a_run_that_may_hang_is_told_with_the_processes_to_look_at() -> None:
    """With the limit that it passed, and the slowest step."""
    watchdog = Watchdog()
    watchdog.step(0.5)

    told = hang_notice(watchdog, (11, 12))

    assert "no message for 10 minutes, and the slowest step took 0.5 s" in told
    assert "`py-spy dump --pid N` shows where a process is (11, 12)" in told
