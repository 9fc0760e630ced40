"""What `chatlm data` prints: how files were read, lengths, a histogram, and rows with their learnt tokens."""

import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from rich.console import Console
from rich.text import Text

from autotune.terminal import STANDARD_OUTPUT, Output, escaped, spaced
from dashboard.formatting import clean, counted, share
from trainer.data.inspection import Lengths, ShownRow, Token
from trainer.supervisor.inspection import Inspection

BAR = 30
"""Columns of the longest bar."""
LONGEST_ROW = 400
"""Tokens of a row that are shown, unless one row was asked for."""
MARKS = ("⟦", "⟧", "│", "█")
PLAIN_MARKS = ("[[", "]]", "|", "#")
LEARNT = "bold green"


def print_data(found: Inspection) -> None:
    """Prints the page; without a terminal nothing is wrapped."""
    output = cast(TextIO, Output(sys.stdout, STANDARD_OUTPUT, errors="backslashreplace"))
    console = Console(file=output)
    for line in page(found, MARKS if console.encoding.startswith("utf") else PLAIN_MARKS):
        line.plain = spaced(line.plain)
        console.print(line, soft_wrap=not console.is_terminal, highlight=False)


def page(found: Inspection, marks: tuple[str, str, str, str] = MARKS) -> Iterator[Text]:
    """The lines of the page. Learnt tokens stand in brackets, and are coloured where colours are."""
    yield from (Text(visible(line)) for line in found.read_as)
    source, target, both = found.lengths
    kind = f"{'causal' if found.is_causal else 'seq2seq'}, {found.template}"
    yield Text(
        f"{counted(found.rows, 'row')} for {clean(found.model)} ({kind}): "
        f"{both.total:,} tokens, {found.learnt_tokens:,} of them learnt "
        f"({share(found.learnt_tokens, both.total)})"
    )
    yield Text()
    yield from table((source, target, both))
    for each in (both,) if found.is_causal else (source, target):
        yield Text()
        yield from histogram(each, marks[3])
    for row in found.shown:
        yield Text()
        yield from row_lines(row, marks, is_causal=found.is_causal, is_whole=len(found.shown) == 1)
    for notice in found.notices:
        yield Text()
        yield Text(f"note: {clean(notice)}")


def table(sides: tuple[Lengths, ...]) -> Iterator[Text]:
    heads = ("least", "median", "95 %", "99 %", "most", "limit")
    yield Text("tokens  " + "".join(f"{head:>9}" for head in heads))
    for side in sides:
        numbers = (side.least, side.median, side.p95, side.p99, side.most, side.limit)
        yield Text(f"{side.side:<8}" + "".join(f"{number:>9,}" for number in numbers))


def histogram(side: Lengths, block: str) -> Iterator[Text]:
    """A bar for each range of lengths."""
    most = max(rows for _, _, rows in side.bars)
    width = len(str(side.bars[-1][1]))
    yield Text(f"rows by tokens of {'the whole' if side.side == 'both' else f'the {side.side}'}")
    for first, last, rows in side.bars:
        bar = block * (max(1, round(BAR * rows / most)) if rows else 0)
        yield Text(f"{first:>{width}} to {last:>{width}}  {bar} {rows:,}")


def row_lines(
    row: ShownRow, marks: tuple[str, str, str, str], *, is_causal: bool, is_whole: bool
) -> Iterator[Text]:
    """A row's numbers, what was cut, and its tokens."""
    said = [
        f"row {row.number:,}: {len(row.source):,} source and {counted(len(row.target), 'target token')}, "
        f"{row.learnt:,} learnt"
    ]
    where = "beginning" if is_causal else "end"
    if row.cut_source:
        said.append(f"{counted(row.cut_source, 'token')} cut from the source's {where}")
    if row.cut_target:
        said.append(f"{counted(row.cut_target, 'token')} cut from the target's end")
    if row.is_last_only:
        said.append("the template rewrites earlier answers: only the last is learnt")
    if row.is_altered:
        said.append("the template leaves out a part")
    if row.spelled is not None:
        said.append(f"its text spells {row.spelled!r}")
    yield Text("; ".join(said), "bold")
    parts = [("", (*row.source, *row.target))]
    if not is_causal:
        parts = [("source  ", row.source), ("target  ", row.target)]
    for head, tokens in parts:
        limit = len(tokens) if is_whole else LONGEST_ROW
        line = Text(f"  {head}").append(token_line(tokens[:limit], marks))
        if len(tokens) > limit:
            line.append(f" and {counted(len(tokens) - limit, 'token')} more (--row {row.number})")
        yield line


def token_line(tokens: tuple[Token, ...], marks: tuple[str, str, str, str]) -> Text:
    """The tokens with a line between two, the learnt ones in brackets."""
    opening, closing, between, _ = marks
    line, is_open = Text(), False
    for number, token in enumerate(tokens):
        if token.is_learnt != is_open:
            line.append(opening if token.is_learnt else closing, "dim")
            is_open = token.is_learnt
        elif number and tokens[number - 1].text:
            line.append(between, "dim")
        line.append(visible(token.text), LEARNT if token.is_learnt else "")
    return line.append(closing, "dim") if is_open else line


def visible(text: str) -> str:
    """The text with line breaks and control characters written out."""
    return escaped(text, keep="")


def as_json(found: Inspection) -> dict[str, Any]:
    """The document that `chatlm data --json` prints."""
    return {
        "schema": 1,
        "files": list(found.files),
        "read_as": list(found.read_as),
        "model": found.model,
        "kind": "causal" if found.is_causal else "seq2seq",
        "template": found.template,
        "rows": found.rows,
        "learnt_tokens": found.learnt_tokens,
        "lengths": {
            side.side: {
                "least": side.least,
                "median": side.median,
                "p95": side.p95,
                "p99": side.p99,
                "most": side.most,
                "total": side.total,
                "limit": side.limit,
                "histogram": [{"from": a, "to": b, "rows": rows} for a, b, rows in side.bars],
            }
            for side in found.lengths
        },
        "cut": {"sources": found.cut_sources, "targets": found.cut_targets},
        "notices": list(found.notices),
        "shown": [_row(row) for row in found.shown],
    }


def _row(row: ShownRow) -> dict[str, Any]:
    return {
        "row": row.number,
        "source": [_token(token) for token in row.source],
        "target": [_token(token) for token in row.target],
        "learnt": row.learnt,
        "cut_source": row.cut_source,
        "cut_target": row.cut_target,
        "last_only": row.is_last_only,
        "altered": row.is_altered,
        "spelled": row.spelled,
    }


def _token(token: Token) -> dict[str, Any]:
    return {"id": token.id, "text": token.text, "learnt": token.is_learnt}
