"""Glyphs, and the shapes made of them: memory bar, peak bar, progress bar, sparkline.

A bar is a `Text` of exactly the given width. Glyphs carry the meaning; colour repeats it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean

from rich.text import Text

Cells = list[tuple[str, str]]
"""(glyph, style) of each column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Glyphs:
    ours: str
    parts: str
    """A column filled to one eighth, two eighths, … seven eighths."""
    others: str
    free: str
    target: str
    peak: str
    hard_limit: str
    line: str
    line_end: str
    rail: str
    crossing: str
    spark: str
    fits: str
    over: str
    oom: str
    running: str
    give_or_take: str


UNICODE = Glyphs(
    ours="█", parts="▏▎▍▌▋▊▉", others="▒", free="─", target="┃", peak="▕", hard_limit="┊",
    line="━", line_end="╸", rail="─", crossing="╋", spark="▁▂▃▄▅▆▇█",
    fits="✓", over="▲", oom="✗", running="▸", give_or_take="±",
)  # fmt: skip
ASCII = Glyphs(
    ours="#", parts="", others="%", free=".", target="|", peak=":", hard_limit="!",
    line="=", line_end="", rail="-", crossing="|", spark="_.,-=+*#",
    fits="+", over="^", oom="x", running=">", give_or_take="+-",
)  # fmt: skip


def distance_style(peak: float, budget: float | None) -> str:
    """Yellow above the budget, green in its last tenth, cyan below or without a budget."""
    if budget and peak > budget:
        return "yellow"
    return "green" if budget and peak >= 0.9 * budget else "cyan"


def memory_bar(
    glyphs: Glyphs, width: int, *, others: float, ours: float, peak: float | None,
    target: float | None, style: str, hard_limit: float | None = None,
) -> Text:  # fmt: skip
    """Tenants', our and free memory, with peak, hard limit and budget (`target`) marked, as shares."""
    start = round(min(1.0, others) * width)
    end = min(1.0, others + ours) * width
    cells: Cells = [(glyphs.others, "dim")] * start
    cells += [(glyphs.ours, style)] * (math.floor(end) - start)
    eighths = math.floor((end - len(cells)) * 8) if glyphs.parts else 0
    if ours > 0 and start <= len(cells) < width and eighths > 0:
        cells.append((glyphs.parts[eighths - 1], style))
    cells = cells[:width] + [(glyphs.free, "dim")] * (width - len(cells))
    for share, mark in ((peak, (glyphs.peak, style)), (hard_limit, (glyphs.hard_limit, "dim"))):
        if share is not None and cells[at := column(share, width)][0] == glyphs.free:
            cells[at] = mark  # memory in use now hides the mark
    if target is not None:
        cells[column(target, width)] = (glyphs.target, "bold")
    return joined(cells)


def peak_bar(glyphs: Glyphs, width: int, *, share: float, mark: int, style: str) -> Text:
    """A line of `share` of the budget, whose mark is in column `mark`."""
    end = min(share * (mark + 0.5), width)
    cells: Cells = [(glyphs.line, style)] * math.floor(end)
    if len(cells) < width and end - len(cells) >= 0.5 and glyphs.line_end:
        cells.append((glyphs.line_end, style))
    cells += [(" ", "")] * (width - len(cells))
    crossed = cells[mark][0] == glyphs.line and share > 1
    cells[mark] = (glyphs.crossing, style) if crossed else (glyphs.target, "dim")
    return joined(cells)


def progress_bar(glyphs: Glyphs, width: int, share: float) -> Text:
    filled = math.floor(max(0.0, min(1.0, share)) * width)
    cells: Cells = [(glyphs.line, "cyan")] * filled
    return joined(cells + [(glyphs.rail, "dim")] * (width - filled))


def sparkline(glyphs: Glyphs, width: int, values: Sequence[float]) -> Text:
    """The values from left to right; a column shows the mean of as many as it must hold."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite or width < 1:
        return Text("")
    per_column = math.ceil(len(finite) / width)
    means = [fmean(finite[i : i + per_column]) for i in range(0, len(finite), per_column)]
    low, high = min(means), max(means)
    top = len(glyphs.spark) - 1
    levels = [round((mean - low) / (high - low) * top) if high > low else 0 for mean in means]
    return Text("".join(glyphs.spark[level] for level in levels), style="cyan")


def column(share: float, width: int) -> int:
    return max(0, min(width - 1, math.floor(share * width)))


def joined(cells: Cells) -> Text:
    text = Text()
    for style, run in groupby(cells, key=lambda cell: cell[1]):
        text.append("".join(glyph for glyph, _ in run), style=style)
    return text
