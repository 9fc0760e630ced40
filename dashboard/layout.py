"""Rows of text that never wrap: pieces side by side, the least needed dropped when it gets narrow."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.text import Text

from dashboard.bars import Glyphs
from dashboard.formatting import encodable

LABEL = 10
"""Columns of the label that a row begins with."""
GAP = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What every row is drawn with."""

    width: int
    glyphs: Glyphs


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a row; the one with the highest `drop_priority` goes first."""

    text: Text
    drop_priority: int = 0


def fitted(width: int, parts: Iterable[Part]) -> Text:
    """The parts side by side, without those that the width has no room for."""
    kept = list(parts)
    while len(kept) > 1 and sum(p.text.cell_len for p in kept) + GAP * (len(kept) - 1) > width:
        kept.remove(max(kept, key=lambda part: part.drop_priority))
    return Text(" " * GAP).join(part.text for part in kept)


def labelled(layout: Layout, label: str, *parts: Part) -> Text:
    return Text.assemble((f"{label:<{LABEL}}", "dim"), fitted(layout.width - LABEL, parts))


def spread(width: int, left: Text, right: Text) -> Text:
    """One at each edge; the left one is shortened when both do not fit."""
    left = left.copy()
    left.truncate(max(1, width - right.cell_len - 2), overflow="ellipsis")
    return Text.assemble(left, " " * (width - left.cell_len - right.cell_len), right)


def pair(name: str, value: str) -> Text:
    """A dim word before its value."""
    return Text.assemble((f"{name} ", "dim"), value)


def in_columns(widths: Sequence[int], cells: Sequence[Text]) -> Text:
    """Cells two columns apart: right-aligned, but for those with a negative width."""
    line = Text()
    for index, (width, cell) in enumerate(zip(widths, cells, strict=True)):
        line.append("  " if index else "")
        space = " " * (abs(width) - cell.cell_len)
        line.append_text(Text.assemble(cell, space) if width < 0 else Text.assemble(space, cell))
    return line


def finished(line: Text, width: int, *, ascii: bool) -> Text:
    """The row as it is printed: one column of margin, cut to the width, in ASCII if need be."""
    line = Text.assemble(" ", line, no_wrap=True, overflow="crop", end="")
    if ascii:
        line.plain = encodable(line.plain, "ascii")
    line.rstrip()
    line.truncate(width)
    line.append("\n")
    return line
