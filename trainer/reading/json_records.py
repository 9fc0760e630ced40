"""Records from JSON of any size and shape, a piece at a time.

Shapes: a list of objects; objects one after another, in lines or not; a list under one key
(`{"data": [...]}`); columns, as lists (`{"prompt": [...]}`) or as pandas writes them
(`{"prompt": {"0": ...}}`).
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import inf
from typing import Any, BinaryIO, Literal

from autotune.errors import DataError
from trainer.reading.faults import FIX_ROW, ROW_BYTES, Fault, kind, shown
from trainer.reading.json_cursor import LARGE, Cursor, DuplicateKey, TooLarge, parse
from trainer.reading.layouts import Columns, find_layout, listed, useful
from trainer.reading.streams import COPY_AGAIN, DataFile, Record, Table

LOOK_AHEAD = 16 << 20
"""Characters of the first object that tell its shape; a row is smaller."""
WRITE_JSON = "write it with json.dumps: JSON has no comments, no comma after the last item, and double quotes alone"
MISTAKES = ("Expecting", "Illegal trailing comma")
"""How errors of JSON's grammar begin: another copy of the file would not mend them."""
MOST_SKIPPED = 1 << 30
"""Bytes of a long line that are passed over to find faults after it."""
FIX_LINE = "fix the line or copy the file again (JSON lines hold one object a line, JSON a list)"

Part = Literal["scalar", "objects", "list", "object"]
"""What a key of the first object holds; `objects` is a list of them."""


def json_table(file: DataFile, columns: Columns, skip: int) -> Table:
    """The records after the first `skip`; raises DataError where the first object is damaged."""
    with file.open_text() as stream:
        cursor = Cursor(stream)
        with _named(file, lambda: f"line {cursor.lines + 1}"):
            if cursor.peek() == "[":
                return _table("JSON", file, _values(file, in_list=True), skip)
            began = cursor.lines
            parts, is_whole = _parts(cursor, columns)
            is_one_line = cursor.lines == began
            follows = is_whole and cursor.peek() != ""
            is_one_line = is_one_line and (not follows or cursor.lines > began)
    if follows or (is_whole and _is_row(parts, columns)):
        if is_one_line:
            return Table("JSON lines", None, _lines(file, skip))
        return _table("JSON objects", file, _values(file, in_list=False), skip)
    for part in ("list", "object"):
        if layout := find_layout(tuple(k for k, held in parts.items() if held == part), columns):
            return _table("JSON columns", file, _columns(file, layout.used), skip)
    lists = [key for key, held in parts.items() if held == "objects"]
    if len(lists) == 1:
        return _table(f"JSON under {shown(lists[0])}", file, _wrapped(file, lists[0]), skip)
    scalars = [key for key, held in parts.items() if held == "scalar"]
    if lists and not useful(scalars, columns):  # else a row that lacks a column
        raise _several_lists(lists)
    return _table("JSON", file, _values(file, in_list=False), skip)


def _parts(cursor: Cursor, columns: Columns) -> tuple[dict[str, Part], bool]:
    """What the keys of the object hold, and whether it was passed as a whole.

    A list of objects that is longer than any row is the only part that counts.
    """
    parts: dict[str, Part] = {}
    for key in cursor.unique_keys():
        # a list of objects in a known column is the turns of a conversation
        part = _part(cursor, inf if useful([key], columns) else LOOK_AHEAD)
        if part is None:
            return {key: "objects"}, False
        parts[key] = part
    return parts, True


def _part(cursor: Cursor, most: float = inf) -> Part | None:
    """What the value is, and moves past it; None in a list of objects longer than `most` characters."""
    first, began = cursor.peek(), cursor.passed
    if first != "[":
        cursor.skip()
        return "object" if first == "{" else "scalar"
    part: Part | None = None
    for _ in cursor.members():
        part = part or ("objects" if cursor.peek() == "{" else "list")
        cursor.value()
        if part == "objects" and cursor.passed - began > most:
            return None
    return part or "list"


def _is_row(parts: dict[str, Part], columns: Columns) -> bool:
    """Whether the object is a row itself: it has texts or turns where a layout looks for them."""
    names = tuple(key for key, held in parts.items() if held in ("scalar", "objects"))
    return find_layout(names, columns) is not None


def _several_lists(lists: Sequence[str]) -> Fault:
    return Fault(f"holds several lists: {listed(lists)}", "give a file with one of them")


def _table(words: str, file: DataFile, values: Iterator[Any], skip: int) -> Table:
    def records() -> Iterator[Record]:
        number = 0
        with _named(file, lambda: f"row {number + 1}"):
            for number, value in enumerate(values, start=1):
                if number > skip:
                    yield value if type(value) is dict else _no_object(value, file, f"row {number}")

    return Table(words, None, records())


def _no_object(value: Any, file: DataFile, place: str) -> DataError:
    return DataError(
        f"{file.path}, {place} is {kind(value)}, not an object",
        f'write each {place.split()[0]} as {{"prompt": "...", "response": "..."}}',
    )


def _values(file: DataFile, *, in_list: bool) -> Iterator[Any]:
    """The items of a list, or values one after another."""
    with file.open_text() as stream:
        cursor = Cursor(stream)
        if in_list:
            for _ in cursor.members():
                yield cursor.value()
            cursor.check_end()
        while cursor.peek():
            yield cursor.value()


def _wrapped(file: DataFile, wanted: str) -> Iterator[Any]:
    """The items of the list under that key."""
    with file.open_text() as stream:
        cursor = Cursor(stream)
        for key in cursor.unique_keys():
            if key == wanted:
                for _ in cursor.members():
                    yield cursor.value()
            elif _part(cursor) == "objects":
                raise _several_lists([wanted, key])
        cursor.check_end()


def _columns(file: DataFile, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Records from columns, each read by a stream of its own, in step."""
    with ExitStack() as streams:
        opened = [streams.enter_context(file.open_text()) for _ in names]
        columns = [
            _column(Cursor(stream), name) for stream, name in zip(opened, names, strict=True)
        ]
        for items in itertools.zip_longest(*columns):
            if None in items or len({key for key, _ in items}) > 1:
                raise ValueError(
                    f"the columns {' and '.join(map(shown, names))} differ in their rows"
                )
            yield {name: value for name, (_, value) in zip(names, items, strict=True)}


def _column(cursor: Cursor, wanted: str) -> Iterator[tuple[str, Any]]:
    """The values of a column, and their keys where it is an object."""
    for name in cursor.members():
        if name != wanted:
            cursor.skip()
            continue
        for key in cursor.members():
            yield key, cursor.value()
        return


def _lines(file: DataFile, skip: int) -> Iterator[Record]:
    with file.open_text() as stream:
        number = 0
        with _named(file, lambda: f"line {number}", FIX_LINE):
            lines = iter(functools.partial(stream.readline, ROW_BYTES + 1), b"")
            for number, line in enumerate(lines, start=1):
                is_large = len(line) > ROW_BYTES
                if line.isspace() and not is_large:
                    continue
                is_last = is_large and not _skip_line(stream)
                if skip:
                    skip -= 1
                    continue
                try:
                    if is_large:
                        raise TooLarge(LARGE)
                    record = parse(line.decode())
                except UnicodeDecodeError:  # of the whole file, as a rule
                    raise
                except (ValueError, RecursionError, DuplicateKey, TooLarge) as error:
                    yield _error(file, error, f"line {number}", FIX_LINE)
                else:
                    is_row = type(record) is dict
                    yield record if is_row else _no_object(record, file, f"line {number}")
                if is_last:
                    return


def _skip_line(stream: BinaryIO) -> bool:
    """Moves past the rest of a long line; False where that is too far away."""
    for _ in range(MOST_SKIPPED // ROW_BYTES):
        if not (rest := stream.readline(ROW_BYTES)) or rest.endswith(b"\n"):
            return True
    return False


def _error(file: DataFile, error: Exception, place: str, advice: str) -> DataError:
    if isinstance(error, DuplicateKey):
        what = f"{file.path}, {place} has the key {shown(error.key)} twice in one object"
        return DataError(what, "keep one of the two")
    if isinstance(error, TooLarge):
        return file.too_large(place, str(error))
    if isinstance(error, RecursionError):
        return DataError(f"{file.path}, {place} has lists or objects nested too deeply", FIX_ROW)
    if advice == COPY_AGAIN and str(error).startswith(MISTAKES):
        advice = WRITE_JSON
    return file.damaged(error, place, advice)


@contextmanager
def _named(file: DataFile, place: Callable[[], str], advice: str = COPY_AGAIN) -> Iterator[None]:
    """Turns errors of the reader into errors that name the place."""
    try:
        yield
    except (ValueError, RecursionError, DuplicateKey, TooLarge) as error:
        raise _error(file, error, place(), advice) from error
