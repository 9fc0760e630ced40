"""Rows of text that never wrap: a narrow row drops its least important parts."""

from collections.abc import Iterable
from dataclasses import dataclass

from rich.text import Text

from autotune.terminal import encodable, spaced
from dashboard.bars import Glyphs

LABEL = 10
"""Columns of the label that a row begins with."""
GAP = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    width: int
    glyphs: Glyphs


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a row; the piece with the highest `drop_priority` is dropped first."""

    text: Text
    drop_priority: int = 0


def fitted(width: int, parts: Iterable[Part]) -> Text:
    """The parts side by side, as many as fit."""
    kept = list(parts)
    while len(kept) > 1 and sum(p.text.cell_len for p in kept) + GAP * (len(kept) - 1) > width:
        kept.remove(max(kept, key=lambda part: part.drop_priority))
    return Text(" " * GAP).join(part.text for part in kept)


def labelled(layout: Layout, label: str, *parts: Part) -> Text:
    return Text.assemble((f"{label:<{LABEL}}", "dim"), fitted(layout.width - LABEL, parts))


def spread(width: int, left: Text, right: Text) -> Text:
    """One text at each edge; the left one is cut where both do not fit."""
    left = left.copy()
    left.truncate(max(1, width - right.cell_len - 2), overflow="ellipsis")
    return Text.assemble(left, " " * (width - left.cell_len - right.cell_len), right)


def pair(name: str, value: str) -> Text:
    return Text.assemble((f"{name} ", "dim"), value)


def finished(line: Text, width: int, *, ascii: bool) -> Text:
    """The row as printed: one column of margin, cut to the width. Nothing in it steers the terminal."""
    line = Text.assemble(" ", line, no_wrap=True, overflow="crop", end="")
    line.plain = spaced(line.plain)
    if ascii:
        line.plain = encodable(line.plain, "ascii")
    line.rstrip()
    line.truncate(width)
    line.append("\n")
    return line
