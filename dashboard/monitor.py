"""`chatlm monitor`: the devices and the host as they are now, with no run of ours."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from autotune.devices.host import HostMeter
from autotune.devices.nvml import NoDriver, Nvml, NvmlDevice
from autotune.errors import DeviceError
from autotune.events import Emit, Notice, ReadingTaken
from autotune.readings import DeviceReading, HostReading
from autotune.units import format_bytes

INTERVAL = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    reading: DeviceReading
    processes: Mapping[int, int] | None
    """Bytes by process id; None if they were not asked for, or the driver does not tell them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SilentCard:
    """A card that does not answer, and why."""

    device: str
    name: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything at one moment: one bad card never blanks the others."""

    cards: tuple[Card | SilentCard, ...]
    host: HostReading
    driver: str | None = None
    """Why the driver does not answer; None where it does, or there is none."""


def take(
    host: HostMeter, nvml: Nvml | None, *, driver: str | None = None, with_processes: bool = True
) -> Snapshot:
    """One reading of everything; processes cost milliseconds a card."""
    devices = () if nvml is None else nvml.devices
    cards = tuple(_look(d, with_processes) for d in devices)
    return Snapshot(cards=cards, host=host.read(), driver=driver)


def _look(device: NvmlDevice, with_processes: bool) -> Card | SilentCard:
    try:
        return Card(reading=device.read(), processes=device.processes() if with_processes else None)
    except DeviceError as error:
        return SilentCard(device=device.uuid, name=device.name, error=str(error))


def open_driver() -> tuple[Nvml | None, str | None]:
    """The NVIDIA driver, and why it does not answer; both None where there is none."""
    try:
        return Nvml.open(), None
    except NoDriver:
        return None, None
    except DeviceError as error:
        return None, error.what


def as_json(snapshot: Snapshot) -> dict[str, Any]:
    """The document that `chatlm monitor --json` prints; bytes."""
    return {
        "schema": 1,
        "driver": snapshot.driver,
        "devices": [_as_object(card) for card in snapshot.cards],
        "host": _with_units(snapshot.host),
    }


def _as_object(card: Card | SilentCard) -> dict[str, Any]:
    if isinstance(card, SilentCard):
        return asdict(card)
    held = None if card.processes is None else sorted(card.processes.items())
    processes = None if held is None else [{"pid": pid, "used_bytes": used} for pid, used in held]
    return {**_with_units(card.reading), "processes": processes}


def _with_units(reading: DeviceReading | HostReading) -> dict[str, Any]:
    values = asdict(reading)
    return {f"{k}_bytes" if k in ("total", "used") else k: v for k, v in values.items()}


def as_lines(snapshot: Snapshot) -> str:
    lines = [
        card.error if isinstance(card, SilentCard) else _line(card.reading.name, card.reading)
        for card in snapshot.cards
    ]
    if not lines:
        lines.append(snapshot.driver or "no NVIDIA card answers")
    return "\n".join([*lines, _line("host RAM", snapshot.host)]) + "\n"


def _line(name: str, reading: DeviceReading | HostReading) -> str:
    used, total = format_bytes(reading.used), format_bytes(reading.total)
    return f"{name:<24} {used} of {total} ({reading.used / reading.total:.0%})"


def watch(host: HostMeter, nvml: Nvml | None, emit: Emit, *, driver: str | None = None) -> None:
    """Emits a reading every second until it is interrupted, and why card or driver do not answer, once."""
    if driver is not None:
        emit(Notice(text=driver))
    said: set[str] = set()
    while True:
        snapshot = take(host, nvml, with_processes=False)
        errors = {card.error for card in snapshot.cards if isinstance(card, SilentCard)}
        for error in sorted(errors - said):
            emit(Notice(text=error))
        said = errors
        readings = tuple(card.reading for card in snapshot.cards if isinstance(card, Card))
        emit(ReadingTaken(devices=readings, host=snapshot.host, workers=0))
        time.sleep(INTERVAL)
