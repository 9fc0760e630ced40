"""`chatlm monitor` over a fake driver: every card that answers, and the host."""

from autotune.host import HostMeter
from autotune.nvml import Nvml
from dashboard.monitor import as_json, as_lines, take
from tests.fake_nvml import FakeDriver, FakeGpu

GIB = 2**30


def test_a_card_that_does_not_answer_hides_no_other() -> None:
    """One bad GPU never blanks the rest."""
    good = FakeGpu(name="Good", uuid="GPU-1", total=20 * GIB, used=5 * GIB)
    bad = FakeGpu(name="Bad", uuid="GPU-2", total=20 * GIB, used=0, broken=True)

    with FakeDriver([bad, good]), Nvml.open() as nvml:
        reading = take(HostMeter(), nvml)

    assert [device.name for device in reading.devices] == ["Good"]
    assert "5.00 GiB of 20.0 GiB (25%)" in as_lines(reading)


def test_without_a_driver_the_host_is_still_shown() -> None:
    """And the document has the same keys."""
    reading = take(HostMeter(), None)

    assert "no NVIDIA card answers" in as_lines(reading)
    assert as_json(reading)["devices"] == []
    assert as_json(reading)["host"]["total_bytes"] > 0
