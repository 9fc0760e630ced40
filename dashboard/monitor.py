"""`chatlm monitor`: the devices and the host as they are now, with no run of ours."""

import time
from dataclasses import asdict
from typing import Any

from autotune.errors import DeviceError
from autotune.events import Emit, ReadingTaken
from autotune.host import HostMeter
from autotune.nvml import Nvml
from autotune.quantity import format_bytes
from autotune.readings import DeviceReading, HostReading

INTERVAL = 1.0


def take(host: HostMeter, nvml: Nvml | None) -> ReadingTaken:
    """One reading of everything that answers; a card that does not is left out."""
    devices: list[DeviceReading] = []
    for device in () if nvml is None else nvml.devices:
        try:
            devices.append(device.read())
        except DeviceError:
            continue
    return ReadingTaken(devices=tuple(devices), host=host.read(), workers=0)


def open_driver() -> Nvml | None:
    """The NVIDIA driver, None where there is none."""
    try:
        return Nvml.open()
    except DeviceError:
        return None


def as_json(reading: ReadingTaken) -> dict[str, Any]:
    """The document that `chatlm monitor --json` prints; bytes."""
    return {
        "schema": 1,
        "devices": [_with_units(device) for device in reading.devices],
        "host": _with_units(reading.host),
    }


def _with_units(reading: DeviceReading | HostReading) -> dict[str, Any]:
    values = asdict(reading)
    return {f"{k}_bytes" if k in ("total", "used") else k: v for k, v in values.items()}


def as_lines(reading: ReadingTaken) -> str:
    """A line a device, and one for the host."""
    lines = [_line(device.name, device) for device in reading.devices]
    if not reading.devices:
        lines.append("no NVIDIA card answers")
    return "\n".join([*lines, _line("host RAM", reading.host)]) + "\n"


def _line(name: str, reading: DeviceReading | HostReading) -> str:
    used, total = format_bytes(reading.used), format_bytes(reading.total)
    return f"{name:<24} {used} of {total} ({reading.used / reading.total:.0%})"


def watch(host: HostMeter, nvml: Nvml | None, emit: Emit) -> None:
    """Emits a reading every second until it is interrupted."""
    while True:
        emit(take(host, nvml))
        time.sleep(INTERVAL)
