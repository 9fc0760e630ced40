"""What is taken outside torch's allocator, and a card that would spill into host memory unasked."""

from pathlib import Path

import pytest

from autotune.tuning.loop import tune
from autotune.verdict import Verdict
from tests.support.probers import held_by_workers, notices, peak_of, prober_on_gpu
from tests.support.processes import each_within
from tests.support.toy_workload import MIB, toy

nothing_hangs = each_within(300)


def test_what_nccl_takes_in_a_first_probe_counts_as_ours(tmp_path: Path) -> None:
    """It allocates its buffers beside torch, on first use: only the driver's "used" shows them."""
    nccl, events, joined = 300 * MIB, list[object](), tmp_path / "joined"

    def used() -> int:
        return held_by_workers() + nccl * joined.exists()

    settings = toy(how="touch", once=joined)
    with prober_on_gpu(tmp_path, settings, used, events=events) as prober:
        first, second = prober.probe(1), prober.probe(50)

    assert notices(events) == []
    for trial in (first, second):
        (card,) = trial.measured
        beside_torch = card.context - card.outside.libraries
        assert beside_torch == pytest.approx(nccl, abs=8 * MIB)
        assert card.reserved is not None
        assert card.peak >= card.reserved + nccl - 8 * MIB
        assert trial.budgets[0].others == 0


def test_a_card_that_would_spill_is_never_filled(tmp_path: Path) -> None:
    """As under WSL: what is beyond the card goes to host memory, and no allocation ever fails.

    Our own limit fails instead, below the card's end; the answer has run within the budget.
    """
    total, highest = 256 * MIB, 0

    def used() -> int:
        nonlocal highest
        highest = max(highest, held_by_workers())
        return min(total, held_by_workers())

    with prober_on_gpu(tmp_path, toy(), used, total=total, target=0.6) as prober:
        refused = prober.probe(400)
        outcome = tune(prober, ceiling=lambda workload_info: 1000, emit=lambda event: None)

    assert refused.verdict is Verdict.OVER
    assert (refused.reason or "").startswith("stopped at the hard limit: ")
    assert 0.9 * 0.6 * total < peak_of(outcome.answer) <= 0.6 * total
    assert highest < total
