"""One rank out of memory while the others wait for it in a real collective."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune.devices.group import EmulatedDevices
from autotune.devices.host import HostMeter
from autotune.tuning.prober import Limits, WorkerProber, WorkloadSpec
from autotune.verdict import Verdict
from bench import faults
from tests.support.processes import deadline, still_running, workers_of
from trainer.config.settings import WorkloadSettings

GIB = 2**30


@pytest.fixture(autouse=True)
def nothing_hangs() -> Iterator[None]:
    with deadline(120):
        yield


def test_one_rank_out_of_memory_ends_the_probe_on_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two gloo processes: torch refuses rank 1 an allocation, rank 0 is in mid-step.

    Tests of the prober have the fresh workers that take the next size.
    """
    monkeypatch.setenv("CHATLM_FAULT", "oom")
    monkeypatch.setenv("CHATLM_FAULT_DONE", str(tmp_path / "done"))
    settings = WorkloadSettings(max_source_length=16, max_target_length=16).as_json()
    with WorkerProber(
        WorkloadSpec(
            path="bench.faults:build",
            settings={**settings, "effective": 4, "effective_fixed": False},
            world_size=2,
        ),
        group=EmulatedDevices(4 * GIB, 2),
        host=HostMeter(),
        limits=Limits(target=1.0, target_ram=1.0),
        emit=lambda event: None,
        log_path=tmp_path / "log",
    ) as prober:
        prober.open()
        before = workers_of(os.getpid())
        refused = prober.probe(faults.AT)
        left = still_running(before)

    assert (refused.verdict, refused.failed_rank) == (Verdict.OOM, 1)
    assert refused.reason is not None
    assert "can't allocate memory" in refused.reason
    assert (len(before), left) == (2, [])
