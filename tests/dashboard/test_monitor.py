"""`chatlm monitor` over a fake driver: every card, whether it answers or not, and the host."""

import json

import pynvml
import pytest
from typer.testing import CliRunner

from autotune.devices.host import HostMeter
from autotune.devices.nvml import Nvml
from autotune.events import Notice, ReadingTaken
from cli import app
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

    assert as_lines(snapshot).startswith("no NVIDIA card answers\nhost RAM ")
    assert as_json(snapshot)["devices"] == []
    assert as_json(snapshot)["driver"] is None
    assert as_json(snapshot)["host"]["total_bytes"] > 0


SILENT = "no NVIDIA driver answers (RM has detected an NVML/RM version mismatch.)"
"""After an update of the driver, until the machine is started anew."""
MISMATCH = {"nvmlInitWithFlags": pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH}


@pytest.mark.parametrize(
    ("fails", "driver", "first"),
    [
        (MISMATCH, SILENT, SILENT),
        (
            {"nvmlDeviceGetCount_v2": pynvml.NVML_ERROR_NO_PERMISSION},
            "no NVIDIA driver answers (Insufficient Permissions)",
            "no NVIDIA driver answers (Insufficient Permissions)",
        ),
        (
            {"nvmlInitWithFlags": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND},
            None,
            "no NVIDIA card answers",
        ),
        ({}, None, "no NVIDIA card answers"),  # a driver without a card
    ],
)
def test_a_driver_that_does_not_answer_says_why(
    fails: dict[str, int], driver: str | None, first: str
) -> None:
    """As lines and as a document; a machine without a driver has nothing to say."""
    with FakeDriver(fails=fails):
        lines = CliRunner().invoke(app, ["monitor", "--once"])
        document = CliRunner().invoke(app, ["monitor", "--json"])

    said = json.loads(document.output)
    assert lines.output.splitlines()[0] == first
    assert lines.output.splitlines()[1].startswith("host RAM ")
    assert (said["driver"], said["devices"], lines.exit_code) == (driver, [], 0)


def test_watching_says_once_why_the_driver_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notice of the live view, before the first reading."""
    events = list[object]()

    def pause(seconds: float) -> None:
        if len(events) > 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", pause)
    with FakeDriver(fails=MISMATCH):
        nvml, why = monitor.open_driver()
    with pytest.raises(KeyboardInterrupt):
        monitor.watch(HostMeter(), nvml, events.append, driver=why)

    notice, *readings = events
    assert notice == Notice(text=SILENT)
    assert [type(event) for event in readings] == [ReadingTaken, ReadingTaken]


def test_a_card_whose_figures_cannot_be_hides_no_other() -> None:
    """No memory at all, more used than there is, a name that is not UTF-8."""
    gpus = [FakeGpu(total=0), FakeGpu(used=21 * GIB), good(), FakeGpu(name=b"\xff", total=GIB)]

    with FakeDriver(gpus), Nvml.open() as nvml:
        first, second, third, fourth, _ = as_lines(take(HostMeter(), nvml)).splitlines()

    assert first.endswith("reports 0 free of 0 bytes of memory, which cannot be; check nvidia-smi")
    assert second.startswith(f"GPU 1 (Fake GPU) reports {2**64 - GIB} free of {20 * GIB} bytes")
    assert third == GOOD
    assert fourth.split() == [r"\xff", "0", "B", "of", "1.00", "GiB", "(0%)"]


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
