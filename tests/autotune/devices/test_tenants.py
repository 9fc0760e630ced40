"""Tenants on a card who come, leave, or pass through while a probe runs."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.choices import DeviceKind
from autotune.devices.group import DeviceGroup
from autotune.devices.tenants import (
    CONTEXT_DRIFT,
    CONTEXT_LOADING,
    Tenants,
    device_of,
    moved,
    passed_through,
)
from autotune.errors import DeviceError
from autotune.readings import DeviceReading, Measured
from autotune.verdict import Verdict
from tests.support.probers import GIB, held_by_workers, notices, peak_of, prober_on_gpu
from tests.support.processes import each_within
from tests.support.toy_workload import MIB, toy

CARD = 4 * GIB
CONTEXT = 100 * MIB
UUID = "GPU-00000000-0000-0000-0000-000000000000"
BYTES = st.integers(0, 8 * GIB)
nothing_hangs = each_within(90)


def beside(tenant: Callable[[], int]) -> Callable[[], int]:
    """What is used of a card by that tenant and our own workers."""
    return lambda: tenant() + held_by_workers(CONTEXT)


AGAIN = "probe 5: a tenant's memory changed meanwhile; measuring again"


def test_one_who_comes_in_mid_probe_shrinks_the_budget_and_the_probe_is_measured_again(
    tmp_path: Path,
) -> None:
    """The peak is our own; what the tenant took is missing from the budget instead."""
    events: list[object] = []
    came = tmp_path / "came"
    settings = toy(how="touch", once=came, at=5)
    with prober_on_gpu(
        tmp_path, settings, beside(lambda: GIB * came.exists()), events=events
    ) as prober:
        first = prober.probe(1)
        disturbed = prober.probe(5)

    assert (first.verdict, disturbed.verdict) == (Verdict.FITS, Verdict.FITS)
    assert first.budgets[0].others == 0
    assert disturbed.budgets[0].others == pytest.approx(GIB, 0.1)
    assert disturbed.budgets[0].budget == CARD // 2 - disturbed.budgets[0].others
    assert peak_of(disturbed) < 300 * MIB
    assert notices(events) == ["Fake GPU: a tenant took 1.00 GiB", AGAIN]


def test_one_who_leaves_in_mid_probe_frees_the_budget(tmp_path: Path) -> None:
    """Without it a probe's peak would read a gibibyte too low."""
    events: list[object] = []
    left = tmp_path / "left"
    settings = toy(how="touch", once=left, at=5)
    with prober_on_gpu(
        tmp_path, settings, beside(lambda: GIB * (not left.exists())), events=events
    ) as prober:
        prober.probe(1)
        disturbed = prober.probe(5)

    assert disturbed.budgets[0].others == pytest.approx(0, abs=8 * MIB)
    assert 100 * MIB < peak_of(disturbed) < 300 * MIB
    assert notices(events) == ["Fake GPU: a tenant freed 1.00 GiB", AGAIN]


def test_one_who_comes_and_goes_in_every_probe_is_given_up_on(tmp_path: Path) -> None:
    """After the third time the reading stands, on the safe side: the visitor counts as ours."""
    events: list[object] = []
    here, seen = tmp_path / "here", tmp_path / "seen"

    def visitor() -> int:
        if not here.exists():
            return 0
        seen.touch()
        return GIB

    settings = toy(how="visit", once=here, after=seen, at=5)
    with prober_on_gpu(tmp_path, settings, beside(visitor), events=events) as prober:
        trial = prober.probe(5)

    assert notices(events) == [AGAIN, AGAIN]
    assert peak_of(trial) > GIB


def test_one_who_fills_the_target_between_two_probes_is_an_error(tmp_path: Path) -> None:
    """No size can hold it any more; the figures say why."""
    came = tmp_path / "came"
    with prober_on_gpu(tmp_path, toy(), beside(lambda: 3 * GIB * came.exists())) as prober:
        prober.probe(1)
        came.touch()
        with pytest.raises(DeviceError, match="which is the whole target of 50 % already"):
            prober.probe(2)


class Card(DeviceGroup):
    """A card whose use and foreign memory are told one after another; the last value stays."""

    kind: DeviceKind = "cuda"

    def __init__(self, *used: int, unaccounted: int = 0) -> None:
        self._used = list(used)
        self._unaccounted = unaccounted

    def read(self, held: object) -> tuple[DeviceReading, ...]:
        used = self._used.pop(0) if len(self._used) > 1 else self._used[0]
        return (DeviceReading(device=UUID, name="card", total=CARD, used=used),)

    def measure(self, reports: object, budgets: object, sampled: object) -> list[Measured]:
        return []

    def unaccounted(self, held: object) -> tuple[int, ...]:
        return (self._unaccounted,)


def tenants_of(card: Card) -> Tenants:
    return Tenants(card, 0.5, lambda event: None)


def test_workers_that_died_while_they_were_built_are_waited_for_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The driver shows them for a moment after their end: they are nobody's tenants."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    tenants = tenants_of(Card(GIB, 3 * GIB, 2 * GIB, GIB))

    tenants.read_baseline()
    tenants.read_baseline()

    assert tenants.budgets[0].others == GIB


def test_the_context_is_missing_from_what_allocations_may_take() -> None:
    """Of the budget, and of the limit at which they fail."""
    tenants = tenants_of(Card(GIB, unaccounted=GIB + CONTEXT))

    tenants.read_baseline()
    before = tenants.headroom(1), tenants.hard_limits(1)
    tenants.set_baseline([])
    (budget,) = tenants.budgets

    assert before == ([budget.budget], [budget.hard_limit])
    assert budget.hard_limit is not None
    assert tenants.headroom(1) == [budget.budget - CONTEXT]
    assert tenants.hard_limits(1) == [budget.hard_limit - CONTEXT]


def test_ranks_that_share_a_device_share_its_room() -> None:
    """Each may take all of it at times: the meter sees what they hold together."""
    tenants = tenants_of(Card(0))

    tenants.read_baseline()
    (budget,) = tenants.budgets

    assert tenants.headroom(2) == [budget.budget // 2] * 2
    assert tenants.hard_limits(2) == [budget.hard_limit] * 2


@given(st.integers(1, 8), st.integers(1, 4))
def test_each_rank_has_its_device(devices: int, sharing: int) -> None:
    """Its own, or the one that all share."""
    own = [device_of(rank, devices, range(devices)) for rank in range(devices)]

    assert own == list(range(devices))
    assert {device_of(rank, sharing, [None]) for rank in range(sharing)} == {0}


@given(BYTES, st.integers(-CONTEXT_DRIFT, CONTEXT_DRIFT))
def test_a_context_may_move_a_little(before: int, change: int) -> None:
    """Between two probes of the same workers."""
    assert moved([before], [before + change], growth=CONTEXT_DRIFT) == (0,)


@given(BYTES, st.integers(-CONTEXT_DRIFT, CONTEXT_LOADING))
def test_a_first_probe_loads_kernels(before: int, change: int) -> None:
    """Up to half a gibibyte beside the allocator."""
    assert moved([before], [before + change], growth=CONTEXT_LOADING) == (0,)


@given(
    BYTES,
    st.integers(CONTEXT_LOADING + 1, 8 * GIB),
    st.sampled_from([CONTEXT_DRIFT, CONTEXT_LOADING]),
)
def test_what_moves_further_is_a_tenant(before: int, change: int, growth: int) -> None:
    """In both directions, and told to the byte."""
    now = [before + change, before - change]

    assert moved([before, before], now, growth=growth) == (change, -change)


def test_a_sample_far_above_our_own_peak_was_not_ours() -> None:
    """The allocator's counter misses nothing of ours but what NCCL holds for a moment."""
    assert passed_through([5 * GIB], [GIB], [GIB], growth=CONTEXT_DRIFT)
    assert not passed_through([2 * GIB + CONTEXT_DRIFT], [GIB], [GIB], growth=CONTEXT_DRIFT)
    assert not passed_through([2 * GIB + CONTEXT_LOADING], [GIB], [GIB], growth=CONTEXT_LOADING)
