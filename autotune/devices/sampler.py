"""Samples the memory of devices, host and workers in a thread, however busy the main thread is.

A reading that is too old is an error, because a probe must not run unwatched. `group` and `tenants`
know what a reading means for a budget.
"""

import itertools
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

from autotune.devices.group import DeviceGroup
from autotune.devices.host import HostMeter
from autotune.errors import ChatlmError, DeviceError
from autotune.events import ReadingTaken
from autotune.readings import HostReading

PERIOD = 0.05
"""Seconds between two readings of the devices."""
SLOWLY = 4
"""One reading in this many includes the host and all that the workers hold of it: to read 8 GPUs, the host and 8
workers every time would cost 1 % of a core."""
STALE = 1.0
"""Seconds after which a reading is too old."""
JOIN = 2.0
"""Seconds to wait at the end for a driver's call that does not return."""


class Workers(Protocol):
    """The host memory of worker processes, bytes by rank."""

    def resident(self) -> Mapping[int, int]:
        """All of it."""

    def held(self, *, with_libraries: bool) -> Mapping[int, int]:
        """What counts where they compute on the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleWindow:
    """The last reading, and the highest since the last `reset`; bytes."""

    latest: ReadingTaken
    highest: tuple[int, ...]
    """Highest use of each device, all processes together."""
    host_tightest: HostReading
    """The reading with the smallest share of the host free."""
    workers_highest: int


class MemorySampler:
    """Samples devices, host and workers while its `with` lasts; join it before the driver closes."""

    def __init__(
        self, group: DeviceGroup, host: HostMeter, workers: Workers, *, stale: float = STALE
    ) -> None:
        self._group = group
        self._host = host
        self._workers = workers
        self._stale = stale
        self._lock = threading.Lock()
        self._window: SampleWindow | None = None
        self._resident: Mapping[int, int] = {}
        self._read_at = self._asked_at = 0.0
        self._failure: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chatlm-meter", daemon=True)

    def __enter__(self) -> Self:
        self.sample()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(JOIN)

    def sample(self, *, full: bool = True) -> None:
        """Takes a reading now; of the devices alone unless `full`.

        Raises:
            DeviceError: a device does not answer.
        """
        with self._lock:
            last = self._window
        if full or last is None:
            self._resident = self._workers.resident()
        held: Mapping[int, int] = {}
        if self._group.kind == "cpu":
            held = self._workers.held(with_libraries=self._group.counts_libraries)
        now = ReadingTaken(
            devices=self._group.read(held),
            host=self._host.read() if full or last is None else last.latest.host,
            workers=sum(self._resident.values()),
        )
        with self._lock:
            self._window = merged(self._window, now)
            self._read_at = time.monotonic()
            self._failure = None

    def reset(self) -> None:
        """Begins a new window with a new reading.

        Raises:
            DeviceError: a device does not answer.
        """
        with self._lock:
            self._window = None
        self.sample()

    def window(self) -> SampleWindow:
        """The window so far.

        Raises:
            DeviceError: the last reading is too old to be believed.
        """
        now, before = time.monotonic(), self._asked_at
        self._asked_at = now
        if now - before > self._stale:  # this process was stopped, as by Ctrl-Z, and its thread too
            while self._is_stale() and time.monotonic() - now <= self._stale:
                time.sleep(PERIOD)
        with self._lock:
            window, age = self._window, time.monotonic() - self._read_at
            failure = self._failure
        if window is None or age > self._stale:
            why = f" ({failure})" if isinstance(failure, ChatlmError) else ""
            raise DeviceError(
                f"the memory meters have not answered for {age:.1f} s{why}, and no probe runs "
                "unwatched",
                "check nvidia-smi, then tune again",
            ) from failure
        return window

    def _is_stale(self) -> bool:
        with self._lock:
            return time.monotonic() - self._read_at > self._stale

    def _run(self) -> None:
        for reading in itertools.count(1):
            if self._stop.wait(PERIOD):
                return
            try:
                self.sample(full=reading % SLOWLY == 0)
            except Exception as error:  # noqa: BLE001  raised by `window`, once it has lasted
                with self._lock:
                    self._failure = error


def merged(before: SampleWindow | None, now: ReadingTaken) -> SampleWindow:
    """The window after one more reading."""
    used = tuple(device.used for device in now.devices)
    if before is None:
        return SampleWindow(
            latest=now, highest=used, host_tightest=now.host, workers_highest=now.workers
        )
    return SampleWindow(
        latest=now,
        highest=tuple(map(max, before.highest, used)),
        host_tightest=max(before.host_tightest, now.host, key=lambda h: h.used / h.total),
        workers_highest=max(before.workers_highest, now.workers),
    )
