"""Memory on the screen: for each device a bar with its budget marked, and its numbers."""

from dataclasses import dataclass

from rich.text import Text

from autotune.readings import DeviceBudget, DeviceReading
from autotune.units import format_bytes
from dashboard.bars import distance_style, memory_bar
from dashboard.formatting import clean, share
from dashboard.layout import GAP, LABEL, Layout, Part, fitted, labelled, pair, spread
from dashboard.state import Screen

MOST_IN_FULL = 2
"""Up to this many devices have three rows each; more have one row each."""
MOST_ROWS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemoryView:
    """One device, bytes; `peak` is our highest sample. After the run `ours` is the run's peak."""

    name: str
    total: int
    others: int
    ours: int
    peak: int | None
    budget: int | None
    hard_limit: int | None
    """Where a hard limit stops a probe of ours; None where that is not above the budget."""
    reading: DeviceReading | None
    ended: bool
    """The run is over; readings would show only tenants, so they are left out."""

    @property
    def style(self) -> str:
        return distance_style(max(self.ours, self.peak or 0), self.budget)


def memories(screen: Screen) -> list[DeviceMemoryView]:
    readings = {reading.device: reading for reading in screen.devices}
    budgets = screen.budgets or tuple(
        DeviceBudget(
            device=device.device, name=device.name, total=device.total, budget=0,
            others=0 if screen.workers else device.used,
        )
        for device in screen.devices
    )  # fmt: skip
    return [memory(screen, i, b, readings.get(b.device)) for i, b in enumerate(budgets)]


def memory(
    screen: Screen, index: int, device: DeviceBudget, reading: DeviceReading | None
) -> DeviceMemoryView:
    others = device.others
    used = others if reading is None else reading.used
    if device.device == "cpu" and not screen.budgets and screen.workers is not None:
        others = used - screen.workers  # the budget is not known yet, our own part is
    others = max(0, min(others, used))
    outcome = final_peak(screen, index)
    highest = screen.highest.get(device.device)
    has_guard = screen.training is None and (device.hard_limit or 0) > device.budget
    return DeviceMemoryView(
        name=clean(device.name),
        total=max(1, device.total),
        others=others if outcome is None else device.others,
        ours=used - others if outcome is None else outcome,
        peak=None if highest is None or outcome is not None else max(0, highest - others),
        budget=device.budget or None,
        hard_limit=device.hard_limit if has_guard else None,
        reading=reading if outcome is None else None,
        ended=outcome is not None,
    )


def final_peak(screen: Screen, index: int) -> int | None:
    """Our peak on this device, once the run is over."""
    if screen.training is not None:
        return None if screen.trained is None else screen.peak
    trial = screen.answer_trial
    if trial is None:
        return None
    return trial.device_peaks[index] if index < len(trial.device_peaks) else trial.peak


def device_rows(layout: Layout, screen: Screen) -> list[Text]:
    devices = memories(screen)
    if len(devices) <= MOST_IN_FULL:
        return [line for device in devices for line in in_full(layout, device)]
    shown = devices if len(devices) <= MOST_ROWS else devices[: MOST_ROWS - 1]
    names = ", ".join(sorted({device.name for device in devices}))
    rows = [Text(f"{len(devices)} × {names}")]
    rows += [in_one_row(layout, index, device) for index, device in enumerate(shown)]
    if len(shown) < len(devices):
        rows.append(Text(f"… and {len(devices) - len(shown)} more", "dim"))
    return rows


def in_full(layout: Layout, device: DeviceMemoryView) -> list[Text]:
    name = Text(f"{device.name}, {format_bytes(device.total)}")
    return [
        spread(layout.width, name, Text(vitals(device.reading), "dim")),
        bar(layout, layout.width, device, hard_limit=device.hard_limit),
        legend(layout, device),
    ]


def vitals(reading: DeviceReading | None) -> str:
    if reading is None:
        return ""
    busy, degrees, watts = reading.utilization, reading.temperature, reading.power
    words = [
        None if busy is None else f"{share(busy, 1)} busy",
        None if degrees is None else f"{degrees:.0f} °C",
        None if watts is None else f"{watts:.0f} W",
    ]
    return "   ".join(filter(None, words))


def bar(
    layout: Layout, width: int, device: DeviceMemoryView, hard_limit: int | None = None
) -> Text:
    def place(ours: int | None) -> float | None:
        return None if ours is None else (device.others + ours) / device.total

    return memory_bar(
        layout.glyphs, width, others=device.others / device.total, ours=device.ours / device.total,
        peak=place(device.peak), target=place(device.budget), hard_limit=place(hard_limit), style=device.style,
    )  # fmt: skip


def legend(layout: Layout, device: DeviceMemoryView) -> Text:
    glyphs, style = layout.glyphs, device.style
    entries = (
        (2, glyphs.others, "dim", "others", device.others or None),
        (0, glyphs.ours, style, "peak" if device.ended else "ours", device.ours),
        (3, glyphs.peak, style, "peak", device.peak),
        (4, glyphs.free, "dim", "free", max(0, device.total - device.others - device.ours)),
        (1, glyphs.target, "bold", "budget", device.budget),
        (5, glyphs.hard_limit, "dim", "hard limit", device.hard_limit),
    )
    parts = [
        Part(Text.assemble((glyph, color), (f" {word} ", "dim"), format_bytes(value)), priority)
        for priority, glyph, color, word, value in entries
        if value is not None
    ]
    return fitted(layout.width, parts)


def in_one_row(layout: Layout, index: int, device: DeviceMemoryView) -> Text:
    limit = device.budget or device.total
    numbers = f"{format_bytes(device.ours, like=limit)} of {format_bytes(limit)}"
    right = Text.assemble(f"  {numbers:>20}", (f"{share(device.ours, limit):>7}", device.style))
    label = Text(f"{index:>3}  ", "dim")
    room = max(8, layout.width - label.cell_len - right.cell_len)
    return Text.assemble(label, bar(layout, room, device), right)


def host_rows(layout: Layout, screen: Screen) -> list[Text]:
    """Host memory in one row; none where the device is the host, or the run is over."""
    host = screen.host
    over = screen.tuned is not None if screen.training is None else screen.trained is not None
    if host is None or over or any(device.device == "cpu" for device in screen.devices):
        return []
    ours = min(screen.workers or 0, host.used)
    used = Text.assemble(format_bytes(host.used), (" of ", "dim"), format_bytes(host.total))
    numbers = fitted(layout.width // 2, [Part(pair("ours", format_bytes(ours)), 1), Part(used)])
    total, room = max(1, host.total), max(8, layout.width - LABEL - numbers.cell_len - GAP)
    bar = memory_bar(
        layout.glyphs, room, others=(host.used - ours) / total, ours=ours / total,
        peak=None, target=None, style="cyan",
    )  # fmt: skip
    return [labelled(layout, "host RAM", Part(bar), Part(numbers))]
