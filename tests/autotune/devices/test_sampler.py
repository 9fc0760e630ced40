"""The sampler: what it keeps of a window, and what it does when a driver is gone or stuck."""

import threading
import time
from collections.abc import Mapping, Sequence

import pytest

from autotune.devices.group import EmulatedDevices
from autotune.devices.host import HostMeter
from autotune.devices.sampler import MemorySampler, merged
from autotune.errors import DeviceError
from autotune.events import ReadingTaken
from autotune.readings import DeviceReading, HostReading
from tests.support.processes import wait_until

GIB = 2**30


class DeviceGroup(EmulatedDevices):
    """One card of which a test says what is read."""

    def __init__(self, used: Sequence[int] = (), broken: bool = False) -> None:
        super().__init__(16 * GIB, 1)
        self.used = iter(used)
        self.broken = broken
        self.asked = 0
        self.stuck = threading.Event()
        self.stuck.set()

    def read(self, held: Mapping[int, int]) -> tuple[DeviceReading, ...]:
        self.stuck.wait(20)
        self.asked += 1
        if self.broken:
            raise DeviceError("GPU 0 fell off the bus; check nvidia-smi")
        return super().read({0: next(self.used, 0)})


class OneWorker:
    """Its libraries take most of its memory."""

    def resident(self) -> dict[int, int]:
        return {0: 5}

    def held(self, *, with_libraries: bool) -> dict[int, int]:
        return {0: 2}


def sampler_over(group: DeviceGroup) -> MemorySampler:
    return MemorySampler(group, HostMeter(), OneWorker(), stale=0.2)


def test_the_highest_of_a_window_is_kept_and_a_reset_begins_anew() -> None:
    """The latest is beside it."""
    with sampler_over(DeviceGroup([3 * GIB, 5 * GIB, 4 * GIB, *[GIB] * 10**6])) as sampler:
        assert wait_until(lambda: sampler.window().latest.devices[0].used == GIB)
        window = sampler.window()
        sampler.reset()
        after = sampler.window()

    assert (window.highest, window.latest.devices[0].used, window.latest.workers) == (
        (5 * GIB,),
        GIB,
        5,
    )
    assert after.highest == (GIB,)


def test_the_host_is_remembered_when_it_had_least_to_spare() -> None:
    """By share: a cgroup above ours may be the tighter one for a moment."""
    tight, loose = HostReading(total=10, used=9), HostReading(total=100, used=50)

    first, then = (
        ReadingTaken(devices=(), host=host, workers=workers)
        for host, workers in ((tight, 7), (loose, 3))
    )

    window = merged(merged(None, first), then)

    assert (window.latest, window.host_tightest, window.workers_highest) == (then, tight, 7)


def test_a_device_that_stops_answering_makes_the_readings_stale() -> None:
    """The message has the driver's own words."""
    group = DeviceGroup()
    with sampler_over(group) as sampler:
        group.broken = True
        with pytest.raises(DeviceError) as caught:
            wait_until(lambda: sampler.window() is None)

    assert "s (GPU 0 fell off the bus; check nvidia-smi), and no probe runs unwatched" in str(
        caught.value
    )


def test_a_driver_that_is_stuck_makes_the_readings_stale() -> None:
    """A call that never returns says nothing, so its silence must."""
    group = DeviceGroup()
    with sampler_over(group) as sampler:
        group.stuck.clear()
        with pytest.raises(DeviceError, match="have not answered for"):
            wait_until(lambda: sampler.window() is None)
        group.stuck.set()


def test_after_a_stop_the_meter_gets_time_for_a_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-Z stops it with all of the process; after `fg` the probe goes on."""
    group = DeviceGroup()
    sampler = MemorySampler(group, HostMeter(), OneWorker(), stale=30.0)
    with sampler:
        group.stuck.clear()
        sampler.window()
        clock, later = time.monotonic, 0.0
        monkeypatch.setattr("autotune.devices.sampler.time.monotonic", lambda: clock() + later)

        later = 3600.0  # the process was stopped for an hour
        threading.Timer(0.1, group.stuck.set).start()
        window = sampler.window()

    assert window.latest.devices[0].total == 16 * GIB


def test_an_error_that_has_passed_is_not_blamed_for_a_later_silence() -> None:
    """A driver that answered again, and then got stuck."""
    group = DeviceGroup()

    def is_asked_thrice() -> bool:
        """The answers to the first two are in the meter by then, the first since the last change."""
        return group.asked >= 3

    with sampler_over(group) as sampler:
        for broken in (True, False):
            group.broken = broken
            group.asked = 0
            assert wait_until(is_asked_thrice)
        group.stuck.clear()
        with pytest.raises(DeviceError) as caught:
            wait_until(lambda: sampler.window() is None)
        group.stuck.set()

    assert " s, and no probe runs unwatched" in str(caught.value)
    assert caught.value.__cause__ is None


def test_one_failure_between_two_answers_is_no_failure() -> None:
    """Drivers hiccup."""
    group = DeviceGroup()
    sampler = MemorySampler(group, HostMeter(), OneWorker(), stale=30.0)
    with sampler:
        group.broken = True
        with pytest.raises(DeviceError):
            sampler.sample()
        group.broken = False

        assert sampler.window().latest.devices[0].used == 0


def test_a_meter_that_never_answered_does_not_start() -> None:
    """Before any worker runs unwatched."""
    with (
        pytest.raises(DeviceError, match="fell off the bus"),
        sampler_over(DeviceGroup(broken=True)),
    ):
        pass
