"""`chatlm monitor` over a fake driver: every card, whether it answers or not, and the host."""

import pytest

from autotune.devices.host import HostMeter
from autotune.devices.nvml import Nvml
from autotune.events import Notice, ReadingTaken
from dashboard import monitor
from dashboard.monitor import as_json, as_lines, take
from tests.support.fake_nvml import FakeDriver, FakeGpu

GIB = 2**30
GOOD = "Good                     5.00 GiB of 20.0 GiB (25%)"


def good() -> FakeGpu:
    return FakeGpu(
        name="Good", uuid="GPU-1", total=20 * GIB, used=5 * GIB, processes={72: 3 * GIB, 71: GIB}
    )


def test_a_card_that_does_not_answer_hides_no_other_and_is_not_hidden() -> None:
    """Lost before the start, lost since, or closed to this user: a line each, with what to do."""
    lost = FakeGpu(name="Lost", uuid="GPU-2")
    gpus = [FakeGpu(broken=True), good(), lost]

    with FakeDriver(gpus), Nvml.open() as nvml:
        lost.broken = True
        snapshot = take(HostMeter(), nvml)

    first, second, third, host = as_lines(snapshot).splitlines()
    assert first.startswith("GPU 0 is lost: ")
    assert second == GOOD
    assert third.startswith("GPU 2 (Lost) is lost: ")
    assert host.startswith("host RAM ")


def test_the_document_names_the_error_of_a_card() -> None:
    """In the place of its figures, so that a script cannot take it for an empty card."""
    bad = FakeGpu(name="GB10", uuid="GPU-2", no_memory=True)

    with FakeDriver([good(), bad]), Nvml.open() as nvml:
        answering, silent = as_json(take(HostMeter(), nvml))["devices"]

    assert answering == {
        "device": "GPU-1", "name": "Good", "total_bytes": 20 * GIB, "used_bytes": 5 * GIB,
        "utilization": 0.5, "temperature": 40.0, "power": 100.0,
        "processes": [{"pid": 71, "used_bytes": GIB}, {"pid": 72, "used_bytes": 3 * GIB}],
    }  # fmt: skip
    assert (silent["device"], silent["name"]) == ("GPU-2", "GB10")
    assert "unified memory" in silent["error"]
    assert len(silent) == 3


def test_processes_that_the_driver_does_not_tell_are_null() -> None:
    """Not an empty list, which would say that nobody computes there."""
    gpu = FakeGpu(processes={71: None})

    with FakeDriver([gpu]), Nvml.open() as nvml:
        (device,) = as_json(take(HostMeter(), nvml))["devices"]

    assert device["processes"] is None


def test_without_a_driver_the_host_is_still_shown() -> None:
    """And the document has the same keys."""
    snapshot = take(HostMeter(), None)

    assert "no NVIDIA card answers" in as_lines(snapshot)
    assert as_json(snapshot)["devices"] == []
    assert as_json(snapshot)["host"]["total_bytes"] > 0


def test_watching_says_once_why_a_card_went_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go on; processes, which are slow to ask for, are left out."""
    bad = FakeGpu(name="Bad", uuid="GPU-2")
    gpus, events = [good(), bad], list[object]()

    def pause(seconds: float) -> None:
        bad.broken = True
        if len(events) > 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", pause)
    with FakeDriver(gpus), Nvml.open() as nvml, pytest.raises(KeyboardInterrupt):
        monitor.watch(HostMeter(), nvml, events.append)

    shown = [
        [device.name for device in event.devices] if isinstance(event, ReadingTaken) else event
        for event in events
    ]
    (notice,) = (event for event in events if isinstance(event, Notice))
    assert shown == [["Good", "Bad"], notice, ["Good"], ["Good"]]
    assert notice.text.startswith("GPU 1 (Bad) is lost")
    assert "nvmlDeviceGetComputeRunningProcesses_v3" not in gpus[0].asked
