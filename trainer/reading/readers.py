"""Reads prompts and responses from files, in order; errors name row and column.

Reads Parquet, JSON (a list of objects) and JSON lines, with columns `prompt` and `response`, or
`messages`. It holds a batch of rows or a piece of text at a time, whatever the file's size.
"""

import codecs
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from autotune.errors import DataError, first_line
from trainer.reading.row import ANSWERS, Row

BATCH_ROWS = 1024
PIECE = 1 << 20
"""Bytes of a JSON list that are read at once."""
ADVICE = "give a Parquet, JSON or JSON-lines file with the columns prompt and response"
BOM = b"\xef\xbb\xbf"
"""What Windows puts before UTF-8 text."""


def bundled(name: str) -> str:
    """The path of the bundled `train` or `valid` file."""
    return str(resources.files("trainer") / "assets" / "data" / f"{name}.jsonl")


def check_file(path: str) -> Path:
    """The file; raises DataError where it is missing, empty, or cannot be looked at."""
    file = Path(path)
    try:
        if not file.is_file():
            what = "is a folder, not a file" if file.is_dir() else "is not there"
            raise DataError(f"data file {path} {what}", ADVICE)
        if file.stat().st_size == 0:
            raise DataError(f"data file {path} is empty (0 bytes)", ADVICE)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", ADVICE) from error
    return file


def check_files(*groups: Sequence[str] | None) -> None:
    """Raises DataError for the first file of any group that is missing or empty."""
    for group in groups:
        for path in group or ():
            check_file(path)


def read_rows(path: str, *, skip: int = 0) -> Iterator[Row]:
    """Every row of the file after the first `skip`, which are not checked; errors count rows from 1.

    Raises:
        DataError: it is missing, empty, damaged, of another kind, or a row is not text.
    """
    file = check_file(path)
    number = skip
    try:
        for number, record in enumerate(_records(file, skip), start=skip + 1):
            yield _row(record, path, number)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", ADVICE) from error
    if number == 0:
        raise DataError(f"data file {path} has no rows", ADVICE)


def count_rows(paths: Sequence[str]) -> int | None:
    """Rows of those files together; None if one is not Parquet: other formats do not store the number."""
    try:
        rows: int = sum(pq.read_metadata(path).num_rows for path in paths)
    except (pa.ArrowException, OSError):  # not Parquet, or damaged: the reader's error says which
        return None
    return rows


def _records(file: Path, skip: int) -> Iterator[dict[str, Any]]:
    with file.open("rb") as stream:
        head = stream.read(4096)
    if head.startswith(b"PAR1"):
        return _parquet(file, skip)
    if file.suffix in (".parquet", ".pq"):
        raise DataError(
            f"{file} is not a Parquet file: it begins with {head[:4]!r}, not with b'PAR1'", ADVICE
        )
    match head.removeprefix(BOM).lstrip()[:1]:
        case b"[":
            return itertools.islice(_objects(_json(file), file, "row"), skip, None)
        case b"{":
            return _objects(_json_lines(file, skip), file, "line")
    raise DataError(f"{file} is neither Parquet nor JSON nor JSON lines", ADVICE)


def _parquet(file: Path, skip: int) -> Iterator[dict[str, Any]]:
    """Does not read a row group that is skipped whole."""
    try:
        with pq.ParquetFile(file, memory_map=True) as table:
            columns = [name for name in table.schema_arrow.names if name in _COLUMNS]
            _check_columns(table.schema_arrow.names, file)
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                if skip >= rows:
                    skip -= rows
                    continue
                for batch in table.iter_batches(
                    batch_size=BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False
                ):
                    yield from batch.slice(skip).to_pylist()
                    skip = max(0, skip - len(batch))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file} is damaged or cut off: {first_line(error)}", "copy the file again"
        ) from error


def _objects(
    numbered: Iterator[tuple[int, Any]], file: Path, place: Literal["row", "line"]
) -> Iterator[dict[str, Any]]:
    """The items; raises DataError where one is no object, or the first lacks a column."""
    is_first = True
    for number, record in numbered:
        if not isinstance(record, dict):
            raise DataError(
                f"{file}, {place} {number} is {_kind(record)}, not an object",
                f'write each {place} as {{"prompt": "...", "response": "..."}}',
            )
        if is_first:
            _check_columns(record, file)
            is_first = False
        yield record


def _json(file: Path) -> Iterator[tuple[int, Any]]:
    try:
        yield from enumerate(_json_items(file), start=1)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{file} is damaged or cut off: {first_line(error)}", "copy the file again"
        ) from error


def _json_items(file: Path) -> Iterator[Any]:
    """The items of a JSON list, read a piece at a time.

    Not by ijson, which is a third faster (200,000 rows of 200 bytes: 1.1 s, here 1.4 s): its parser in
    C silently turns half a surrogate pair into `?`, and refuses the NaN that Python writes.
    Raises ValueError where the file is no list, or not whole.
    """
    decoder = json.JSONDecoder()
    to_text = codecs.getincrementaldecoder("utf-8-sig")()
    with file.open("rb") as stream:
        text, place, is_all, piece = "", 0, False, PIECE

        def more() -> None:
            """Reads the next piece; for one item each piece is twice the one before."""
            nonlocal text, place, is_all, piece
            read = stream.read(piece)
            is_all, piece = not read, 2 * piece
            text, place = text[place:] + to_text.decode(read, final=is_all), 0

        def next_character() -> str:
            nonlocal place
            while True:
                place = _SPACE.match(text, place).end()  # type: ignore[union-attr]  # always matches
                if place < len(text) or is_all:
                    return text[place : place + 1]
                more()

        if next_character() != "[":
            raise ValueError("it does not begin as a list")
        place += 1
        if (follows := next_character()) == "]":
            place += 1
        while follows != "]":
            next_character()
            piece = PIECE
            while True:  # until the character after the item is read: `1` may continue as `12`
                try:
                    item, end = decoder.raw_decode(text, place)
                except ValueError:
                    if is_all:
                        raise
                else:
                    if is_all or end < len(text):
                        break
                more()
            place = end
            yield item
            if (follows := next_character()) not in (",", "]"):
                raise ValueError(f"{follows or 'the end'!r} where a comma or the list's end is due")
            place += 1
        if rest := next_character():
            raise ValueError(f"{rest!r} after the list's end")


_SPACE = re.compile(r"[ \t\n\r]*")


def _json_lines(file: Path, skip: int) -> Iterator[tuple[int, Any]]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            if skip:
                skip -= 1
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{file}, line {number} is damaged or cut off: {first_line(error)}",
                    "fix the line or copy the file again (JSON lines hold one object a line, JSON a "
                    "list)",
                ) from error


_COLUMNS = ("prompt", "response", "messages")


def _check_columns(names: Any, file: Path) -> None:
    present = set(names)
    if {"prompt", "response"} <= present or "messages" in present:
        return
    missing = " and ".join(sorted({"prompt", "response"} - present))
    raise DataError(
        f"{file} has no column {missing} (found: {', '.join(sorted(map(str, present))) or 'none'})",
        "rename its columns to prompt and response, or give messages",
    )


def _row(record: dict[str, Any], path: str, number: int) -> Row:
    if "prompt" not in record and "messages" in record:
        return _conversation(record["messages"], path, number)
    for column in ("prompt", "response"):
        _check_text(record.get(column), f"{path}, row {number}, column {column}")
    return Row.pair(record["prompt"], record["response"])


def _conversation(messages: Any, path: str, number: int) -> Row:
    where = f"{path}, row {number}, column messages"
    if not isinstance(messages, list) or len(messages) < 2:
        raise DataError(f"{where}: not a list of at least two turns", "fix the row or drop it")
    turns: list[tuple[str, str]] = []
    for message in messages:
        match message:
            case {"role": str(role), "content": str(content)}:
                _check_text(content, where)
                turns.append((role, content))
            case _:
                raise DataError(
                    f"{where}: a turn without a text `role` and `content`", "fix the row or drop it"
                )
    if turns[-1][0] != ANSWERS:
        raise DataError(
            f"{where}: the last turn is {turns[-1][0]!r}, not 'assistant'",
            "end each row with the answer to learn",
        )
    return Row.conversation(turns)


def _check_text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        kind = "is missing or null" if value is None else f"is {_kind(value)}, not text"
        raise DataError(f"{where}: it {kind}", "make it a string or drop the row")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: half a character, {value[error.start]!r}, at place {error.start}",
            "fix the text or drop the row",
        ) from error


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"
