"""Budgets and peaks of the devices: the memory identity, without any device."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.devices.budget import budgets
from autotune.devices.group import (
    DeviceGroup,
    EmulatedDevices,
    GpuDevices,
    HostDevice,
    peak_from_report,
)
from autotune.devices.host import HostMeter
from autotune.devices.nvml import Nvml
from autotune.errors import DeviceError
from autotune.readings import DeviceReading, HostReading, Outside, Report
from tests.support.fake_nvml import FakeDriver, FakeGpu

GIB = 2**30
UUIDS = tuple(f"GPU-0000000{i}-0000-0000-0000-000000000000" for i in range(2))
REPORT = Report(
    device=UUIDS[0], static_bytes=4, activation_peak=9, peak=10, allocated=8, resident=7, retries=0,
    seconds=(1.0,), samples=1, tokens=1,
)  # fmt: skip

BYTES = st.integers(0, 80 * GIB)


def reading(total: int, used: int) -> DeviceReading:
    return DeviceReading(device="card", name="Card", total=total, used=used)


def test_a_budget_is_the_share_of_the_whole_card_less_what_others_hold() -> None:
    """0.6 of 20 GiB beside a tenant of 5 GiB is 7 GiB, not 0.6 of what is free."""
    (budget,) = budgets([reading(20 * GIB, 5 * GIB)], 0.6)

    assert (budget.total, budget.others, budget.budget) == (20 * GIB, 5 * GIB, 7 * GIB)


def test_a_card_whose_target_others_hold_is_said() -> None:
    """One such card among several is enough: all ranks take the same micro-batch."""
    with pytest.raises(DeviceError) as caught:
        budgets([reading(20 * GIB, 0), reading(20 * GIB, 12 * GIB)], 0.6)

    assert str(caught.value) == (
        "Card: others hold 12.0 GiB of 20.0 GiB, which is the whole target of 60 % already; tune for a higher "
        "--target-vram, or wait until they are done"
    )


def test_a_peak_between_two_samples_counts_with_the_context() -> None:
    """torch's counter sees every moment but not the context; the driver sees all, now and then."""
    measured = peak_from_report(REPORT, used_now=110, others=100, sampled=112)

    assert (measured.static_bytes, measured.activation_peak, measured.peak) == (
        4 + 3,
        9 + 3,
        10 + 3,
    )
    assert (measured.context, measured.reserved, measured.allocated) == (3, 10, 8)


def test_a_sample_above_what_torch_counted_is_the_peak() -> None:
    """NCCL and cuBLAS allocate beside torch, and give back before the probe has ended."""
    assert peak_from_report(REPORT, used_now=110, others=100, sampled=150).peak == 50


@given(BYTES, BYTES, BYTES, BYTES)
def test_a_peak_is_never_less_than_torchs_own(
    used_now: int, others: int, sampled: int, peak: int
) -> None:
    """Nor than any sample: others who leave in the middle do not make us smaller."""
    measured = peak_from_report(replace(REPORT, peak=peak), used_now, others, sampled)

    assert measured.peak >= max(peak, sampled - others)


def test_cards_that_the_workers_are_not_on_are_an_error() -> None:
    """Memory that is read on one card and held on another says nothing."""
    with FakeDriver([FakeGpu(uuid=uuid) for uuid in UUIDS]), Nvml.open() as nvml:
        group = GpuDevices(nvml.devices[1:])
        planned = budgets(group.read_baseline(), 0.6)

        with pytest.raises(DeviceError) as caught:
            group.measure([REPORT], planned, [0])

    assert str(caught.value) == (
        f"the workers run on {UUIDS[0]}, not on {UUIDS[1]} where memory is read; check "
        f"CUDA_VISIBLE_DEVICES"
    )


def test_the_order_of_the_ranks_need_not_be_the_cards() -> None:
    """A report is matched to its card by UUID."""
    reports = [replace(REPORT, device=UUIDS[1], peak=2 * GIB), replace(REPORT, peak=GIB)]
    with FakeDriver([FakeGpu(uuid=uuid) for uuid in UUIDS]), Nvml.open() as nvml:
        group = GpuDevices(nvml.devices)

        measured = group.measure(reports, budgets(group.read_baseline(), 0.6), [0, 0])

    assert [card.peak for card in measured] == [GIB, 2 * GIB]


def test_a_limit_makes_a_card_smaller_and_never_larger() -> None:
    """Its others stay: what is left to us is what a worker may allocate."""
    with FakeDriver([FakeGpu(total=24 * GIB, used=2 * GIB)]), Nvml.open() as nvml:
        small, same = GpuDevices(nvml.devices, 20 * GIB), GpuDevices(nvml.devices, 30 * GIB)
        (as_small,), (as_is,) = small.read_baseline(), same.read_baseline()
        memory_cap = small.memory_cap([as_small])

    assert (as_small.name, as_small.total, as_small.used) == (
        "Fake GPU as 20.0 GiB", 20 * GIB, 2 * GIB,
    )  # fmt: skip
    assert (as_is.name, as_is.total) == ("Fake GPU", 24 * GIB)
    assert memory_cap == 18 * GIB


def test_an_emulated_card_holds_its_rank_alone() -> None:
    """It has no other tenants."""
    group = EmulatedDevices(GIB, 2)

    before, (first, second) = group.read_baseline(), group.read({0: 7, 1: 9})

    assert [card.used for card in before] == [0, 0]
    assert (first.used, second.used) == (7, 9)
    assert (first.device, second.device, second.total) == ("cpu:0", "cpu:1", GIB)


class Host(HostMeter):
    """A machine of 16 GiB, of which others use 2."""

    def read(self) -> HostReading:
        return HostReading(total=16 * GIB, used=2 * GIB)


@pytest.mark.parametrize("group", [HostDevice(Host()), EmulatedDevices(4 * GIB, 2)])
def test_the_libraries_of_workers_take_from_the_host_and_not_from_an_emulated_card(
    group: DeviceGroup,
) -> None:
    """A card of the same size holds the same with any build of torch; on the host they are a context."""
    outside = Outside(libraries=GIB, mapped=GIB)
    is_host = isinstance(group, HostDevice)

    group.read_baseline()
    used = group.read({0: GIB})[0].used
    measured = group.measure([replace(REPORT, outside=outside)] * 2, [], [])[0]

    assert group.counts_libraries == is_host
    assert used == (3 * GIB if is_host else GIB)
    assert measured.peak == (20 + 2 * GIB if is_host else 10)
    assert measured.static_bytes == (8 + 2 * GIB if is_host else 4)
    assert measured.context == (2 * GIB if is_host else 0)
    assert measured.outside.mapped == (2 * GIB if is_host else GIB)
