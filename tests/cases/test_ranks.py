"""One rank out of memory while the others wait for it in a real collective."""

import os
from pathlib import Path

import pytest

from autotune.verdict import Verdict
from bench import faults
from tests.support.probers import GIB, prober_of
from tests.support.processes import each_within, still_running, workers_of
from trainer.config.settings import WorkloadSettings

nothing_hangs = each_within(300)


def test_one_rank_out_of_memory_ends_the_probe_on_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two gloo processes: torch refuses rank 1 an allocation, rank 0 is in mid-step.

    Tests of the prober have the fresh workers that take the next size.
    """
    monkeypatch.setenv("CHATLM_FAULT", "oom")
    monkeypatch.setenv("CHATLM_FAULT_DONE", str(tmp_path / "done"))
    settings = WorkloadSettings(max_source_length=16, max_target_length=16).as_json()
    settings |= {"effective": 4, "effective_fixed": False}
    with prober_of(
        tmp_path, settings, path="bench.faults:build", world_size=2, card=4 * GIB, target=1.0
    ) as prober:
        prober.open()
        before = workers_of(os.getpid())
        refused = prober.probe(faults.AT)
        left = still_running(before)

    assert (refused.verdict, refused.failed_rank) == (Verdict.OOM, 1)
    assert "can't allocate memory" in (refused.reason or "")
    assert (len(before), left) == (2, [])
