"""What is taken outside torch's allocator, and a card that would spill into host memory unasked."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from autotune.devices.group import GpuDevices
from autotune.devices.host import HostMeter
from autotune.devices.nvml import Nvml
from autotune.devices.processes import resident
from autotune.events import Notice
from autotune.tuning.loop import tune
from autotune.tuning.prober import Limits, WorkerProber, WorkloadSpec
from autotune.verdict import Verdict
from tests.support.fake_nvml import FakeDriver, FakeGpu
from tests.support.processes import deadline, workers_of
from tests.support.toy_workload import MIB, PATH, toy

UUID = "GPU-00000000-0000-0000-0000-000000000000"


@pytest.fixture(autouse=True)
def nothing_hangs() -> Iterator[None]:
    with deadline(90):
        yield


@contextmanager
def prober_on(
    folder: Path,
    settings: dict[str, Any],
    *,
    total: int,
    target: float,
    used: Callable[[], int],
    events: list[object],
) -> Iterator[WorkerProber]:
    """A prober of the toy on one made-up card."""
    with (
        FakeDriver([FakeGpu(uuid=UUID, total=total, used=used)]),
        Nvml.open() as nvml,
        WorkerProber(
            WorkloadSpec(path=PATH, settings={**settings, "device": UUID}),
            group=GpuDevices(nvml.devices),
            host=HostMeter(),
            limits=Limits(target=target, target_ram=0.99),
            emit=events.append,
            log_path=folder / "log",
        ) as prober,
    ):
        yield prober


def workers_hold() -> int:
    return sum(resident(worker.pid) for worker in workers_of(os.getpid()))


def test_what_nccl_takes_in_a_first_probe_counts_as_ours(tmp_path: Path) -> None:
    """It allocates its buffers beside torch, on first use: only the driver's "used" shows them."""
    nccl, events, joined = 300 * MIB, list[object](), tmp_path / "joined"

    def used() -> int:
        return workers_hold() + nccl * joined.exists()

    settings = toy(how="touch", once=joined)
    with prober_on(
        tmp_path, settings, total=4096 * MIB, target=0.5, used=used, events=events
    ) as prober:
        first, second = prober.probe(1), prober.probe(50)

    assert [event.text for event in events if isinstance(event, Notice)] == []
    for trial in (first, second):
        (card,) = trial.measured
        assert card.context == pytest.approx(nccl, abs=8 * MIB)
        assert card.reserved is not None
        assert card.peak >= card.reserved + nccl - 8 * MIB
        assert trial.budgets[0].others == 0


def test_a_card_that_would_spill_is_never_filled(tmp_path: Path) -> None:
    """As under WSL: what is beyond the card goes to host memory, and no allocation ever fails.

    Our own limit fails instead, below the card's end; the answer has run within the budget.
    """
    total, highest, events = 256 * MIB, 0, list[object]()

    def used() -> int:
        nonlocal highest
        highest = max(highest, workers_hold())
        return min(total, workers_hold())

    with prober_on(tmp_path, toy(), total=total, target=0.6, used=used, events=events) as prober:
        refused = prober.probe(400)
        outcome = tune(prober, ceiling=lambda workload_info: 1000, emit=events.append)

    assert refused.verdict is Verdict.OVER
    assert refused.reason is not None
    assert refused.reason.startswith("stopped at the hard limit: ")
    assert outcome.answer is not None
    assert outcome.answer.peak is not None
    assert 0.9 * 0.6 * total < outcome.answer.peak <= 0.6 * total
    assert highest < total
