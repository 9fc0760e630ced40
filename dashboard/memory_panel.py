"""Memory as it is drawn: per device a bar with its target line, and the same in words."""

from dataclasses import dataclass

from rich.text import Text

from autotune.readings import DeviceReading
from autotune.trial import DeviceBudget
from autotune.units import format_bytes
from dashboard.bars import distance_style, memory_bar
from dashboard.formatting import clean, share
from dashboard.layout import LABEL, Layout, Part, fitted, pair, spread
from dashboard.state import Screen

MOST_IN_FULL = 2
"""More devices than this have one row each instead of three."""
MOST_ROWS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemoryView:
    """One device, bytes. `ours` is in use now, or once the run is over what it peaked at."""

    name: str
    total: int
    others: int
    ours: int
    peak: int | None
    """Ours, the highest sampled."""
    budget: int | None
    hard_limit: int | None
    """Ours, where the guard stops a probe; None where that is not beyond the budget."""
    reading: DeviceReading | None
    ended: bool
    """The run is over: the meters tell of others only, and are not shown."""

    @property
    def style(self) -> str:
        return distance_style(max(self.ours, self.peak or 0), self.budget)


def memories(screen: Screen) -> list[DeviceMemoryView]:
    readings = {reading.device: reading for reading in screen.devices}
    if screen.budgets:
        return [
            memory(screen, index, budget, readings.get(budget.device))
            for index, budget in enumerate(screen.budgets)
        ]
    return [
        memory(
            screen,
            index,
            DeviceBudget(
                device=reading.device,
                name=reading.name,
                total=reading.total,
                others=0 if screen.workers else reading.used,
                budget=0,
            ),
            reading,
        )
        for index, reading in enumerate(screen.devices)
    ]


def memory(
    screen: Screen, index: int, device: DeviceBudget, reading: DeviceReading | None
) -> DeviceMemoryView:
    others = device.others
    used = others if reading is None else reading.used
    if device.device == "cpu" and reading is not None and screen.workers is not None:
        others = used - screen.workers  # of host memory our own part is known at any time
    others = max(0, min(others, used))
    outcome = final_peak(screen, index)
    highest = screen.highest.get(device.device)
    return DeviceMemoryView(
        name=clean(device.name),
        total=max(1, device.total),
        others=others if outcome is None else device.others,
        ours=used - others if outcome is None else outcome,
        peak=None if highest is None or outcome is not None else max(0, highest - others),
        budget=device.budget or None,
        hard_limit=hard_limit(screen, device),
        reading=reading if outcome is None else None,
        ended=outcome is not None,
    )


def hard_limit(screen: Screen, device: DeviceBudget) -> int | None:
    """Where the guard stops a probe of ours; training has no guard."""
    if (
        screen.training is not None
        or device.hard_limit is None
        or device.hard_limit <= device.budget
    ):
        return None
    return device.hard_limit


def final_peak(screen: Screen, index: int) -> int | None:
    """What the run held of this device at most, once it is over."""
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
        spread(layout.width, name, Text(meters(device.reading), "dim")),
        bar(layout, layout.width, device, guard=device.hard_limit),
        legend(layout, device),
    ]


def meters(reading: DeviceReading | None) -> str:
    if reading is None:
        return ""
    words = []
    if reading.utilization is not None:
        words.append(f"{share(reading.utilization, 1)} busy")
    if reading.temperature is not None:
        words.append(f"{reading.temperature:.0f} °C")
    if reading.power is not None:
        words.append(f"{reading.power:.0f} W")
    return "   ".join(words)


def bar(layout: Layout, width: int, device: DeviceMemoryView, guard: int | None = None) -> Text:
    def place(ours: int | None) -> float | None:
        return None if ours is None else (device.others + ours) / device.total

    return memory_bar(
        layout.glyphs,
        width,
        others=device.others / device.total,
        ours=device.ours / device.total,
        peak=place(device.peak),
        target=place(device.budget),
        guard=place(guard),
        style=device.style,
    )


def legend(layout: Layout, device: DeviceMemoryView) -> Text:
    """The bar in words; its glyphs are the key."""
    glyphs, style = layout.glyphs, device.style

    def part(
        drop_priority: int, glyph: str, color: str, word: str, value: int | None
    ) -> list[Part]:
        if value is None:
            return []
        return [
            Part(
                Text.assemble((glyph, color), (f" {word} ", "dim"), format_bytes(value)),
                drop_priority,
            )
        ]

    free = max(0, device.total - device.others - device.ours)
    return fitted(
        layout.width,
        [
            *part(2, glyphs.others, "dim", "others", device.others or None),
            *part(0, glyphs.ours, style, "peak" if device.ended else "ours", device.ours),
            *part(3, glyphs.peak, style, "peak", device.peak),
            *part(4, glyphs.free, "dim", "free", free),
            *part(1, glyphs.target, "bold", "budget", device.budget),
            *part(5, glyphs.guard, "dim", "guard", device.hard_limit),
        ],
    )


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
    bar = memory_bar(
        layout.glyphs,
        max(8, layout.width - LABEL - numbers.cell_len - 3),
        others=(host.used - ours) / max(1, host.total),
        ours=ours / max(1, host.total),
        peak=None,
        target=None,
        style="cyan",
    )
    return [Text.assemble((f"{'host RAM':<{LABEL}}", "dim"), bar, "   ", numbers)]
