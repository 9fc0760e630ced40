"""Prompts and responses from files, a batch of rows at a time, with faults named by row and column.

It reads Parquet, JSON (a list of objects) and JSON lines, with columns `prompt` and `response`, or
`messages`. Tokens are `store`'s business.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from autotune.errors import DataError

BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One sample: the turns up to the last answer, and that answer."""

    turns: tuple[tuple[str, str], ...]
    """(role, content); a prompt is one turn of the user."""
    response: str

    @property
    def prompt(self) -> str:
        """The turns as one text, for a model without a chat template."""
        return "\n".join(content for _, content in self.turns)


def bundled(name: str) -> str:
    """The path of the bundled `train` or `valid` file."""
    return str(resources.files("trainer") / "assets" / "data" / f"{name}.jsonl")


def read_rows(path: str) -> Iterator[Row]:
    """Every row of the file, in order.

    Raises:
        DataError: it is missing, empty, damaged, of another kind, or a row is not text.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"no data file {path}; give --data a Parquet, JSON or JSON-lines file")
    if file.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    empty = True
    for number, record in enumerate(_records(file)):
        empty = False
        yield _row(record, path, number)
    if empty:
        raise DataError(f"{path} has no rows")


def _records(file: Path) -> Iterator[dict[str, Any]]:
    with file.open("rb") as stream:
        head = stream.read(4)
    if head == b"PAR1":
        return _parquet(file)
    if file.suffix in (".parquet", ".pq"):
        raise DataError(f"{file} is not a Parquet file: it does not begin with PAR1")
    with file.open("rb") as stream:
        start = stream.read(4096).lstrip()[:1]
    if start == b"[":
        return _json(file)
    if start == b"{":
        return _json_lines(file)
    raise DataError(f"{file} is neither Parquet nor JSON nor JSON lines")


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(file, memory_map=True) as table:
            columns = [name for name in table.schema_arrow.names if name in _COLUMNS]
            _check_columns(table.schema_arrow.names, file)
            for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=columns):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} is damaged or cut off: {_first_line(error)}") from error


def _json(file: Path) -> Iterator[dict[str, Any]]:
    try:
        records = json.loads(file.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is damaged or cut off: {_first_line(error)}") from error
    if not all(isinstance(record, dict) for record in records):
        raise DataError(f"{file} is a JSON list of other things than objects")
    if records:
        _check_columns(records[0], file)
    yield from records


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise DataError(
                    f"{file}, line {number} is damaged or cut off: {_first_line(error)}"
                ) from error
            if not isinstance(record, dict):
                raise DataError(f"{file}, line {number} is not an object")
            if number == 1:
                _check_columns(record, file)
            yield record


_COLUMNS = ("prompt", "response", "messages")


def _check_columns(names: Any, file: Path) -> None:
    present = set(names)
    if {"prompt", "response"} <= present or "messages" in present:
        return
    missing = " and ".join(sorted({"prompt", "response"} - present))
    raise DataError(
        f"{file} has no column {missing}; it needs prompt and response, or messages "
        f"(found: {', '.join(sorted(map(str, present))) or 'none'})"
    )


def _row(record: dict[str, Any], path: str, number: int) -> Row:
    if "prompt" not in record and "messages" in record:
        return _conversation(record["messages"], path, number)
    for column in ("prompt", "response"):
        value = record.get(column)
        if not isinstance(value, str):
            kind = "missing" if value is None else f"{type(value).__name__}, not text"
            raise DataError(f"{path}, row {number}, column {column}: {kind}")
    return Row((("user", record["prompt"]),), record["response"])


def _conversation(messages: Any, path: str, number: int) -> Row:
    where = f"{path}, row {number}, column messages"
    if not isinstance(messages, list) or len(messages) < 2:
        raise DataError(f"{where}: not a list of at least two turns")
    turns: list[tuple[str, str]] = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(role, str) or not isinstance(content, str):
            raise DataError(f"{where}: a turn without a text `role` and `content`")
        turns.append((role, content))
    if turns[-1][0] != "assistant":
        raise DataError(f"{where}: the last turn is {turns[-1][0]!r}, not 'assistant'")
    return Row(tuple(turns[:-1]), turns[-1][1])


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
