"""Records from Parquet and Arrow files, a batch at a time."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from autotune.errors import DataError, first_line
from autotune.units import format_bytes
from trainer.reading.arrow_messages import MessageStream
from trainer.reading.faults import ROW_BYTES, Fault, check_names, shown
from trainer.reading.layouts import Columns, useful
from trainer.reading.parquet_pages import (
    BATCH_ROWS,
    FOOTER_BYTES,
    check_footer,
    row_groups,
    rows_at_once,
)
from trainer.reading.row_weights import check_type, is_plain, weights_of
from trainer.reading.streams import COPY_AGAIN, DataFile, Record, Table

SLICE_BYTES = 4 << 20
"""Of the rows that are made at once, if a single one is not larger."""
SMALL_BYTES = 1 << 20
"""Of a batch whose rows need not be weighed."""


def parquet_table(file: DataFile, columns: Columns, skip: int) -> Table:
    """The records after the first `skip`; does not read a row group that is skipped whole."""
    with _named(file), file.seekable() as path, _parquet(path) as (_, table):
        names, used = _names(table.schema_arrow, columns)
    return Table("Parquet", names, _parquet_records(file, used, skip))


def arrow_table(file: DataFile, columns: Columns, skip: int) -> Table:
    """The records after the first `skip` of a file or a stream."""
    with _named(file), file.seekable() as path, Path(path).open("rb") as stream:
        schema = pa.ipc.open_stream(MessageStream(file.path, stream)).schema
        names, used = _names(schema, columns)
    return Table("Arrow", names, _arrow_records(file, schema, used, skip))


def count_parquet_rows(path: str) -> int | None:
    """The rows by the file's summary; None if it is not Parquet, or damaged: its reader says how."""
    if not Path(path).is_file():  # a pipe would be waited for
        return None
    try:
        with _parquet(path) as (_, table):
            rows: int = table.metadata.num_rows
    except (pa.ArrowException, OSError, ValueError, Fault):
        return None
    return rows


def _parquet_records(file: DataFile, names: list[str], skip: int) -> Iterator[Record]:
    with _named(file), file.seekable() as path, _parquet(path) as (stream, table):
        done = 0
        for group, chunks in enumerate(row_groups(stream)):
            rows = table.metadata.row_group(group).num_rows
            if skip >= done + rows:
                done += rows
                continue
            at_once = rows_at_once(stream, table.schema, chunks, group, names)
            for batch in table.iter_batches(
                batch_size=at_once, row_groups=[group], columns=names, use_threads=False
            ):  # fmt: skip
                for records in _records(file, batch, done, skip):
                    yield from records
                done += len(batch)


def _arrow_records(file: DataFile, schema: Any, names: list[str], skip: int) -> Iterator[Record]:
    known = [_name(field) for field in schema]
    chosen = [known.index(name) for name in names]
    options = pa.ipc.IpcReadOptions(included_fields=chosen)
    with _named(file), file.seekable() as path, Path(path).open("rb") as stream:
        messages = MessageStream(file.path, stream, schema, chosen)
        done = 0
        for batch in pa.ipc.open_stream(messages, options=options):
            batch.validate(full=True)  # Arrow follows offsets and indices wherever they lead
            for records in _records(file, batch, done, skip):
                yield from records
            done += len(batch)


@contextmanager
def _parquet(path: str) -> Iterator[tuple[Any, Any]]:
    """The file, and a reader of it. It is not mapped: a program that cut it would end this one."""
    with Path(path).open("rb") as stream:
        check_footer(stream)
        with pq.ParquetFile(
            path, buffer_size=1 << 20, thrift_string_size_limit=FOOTER_BYTES
        ) as table:
            yield stream, table


def _records(file: DataFile, batch: Any, done: int, skip: int) -> Iterator[Iterable[Record]]:
    """The rows of a batch, of which `done` came before, without those that are skipped; some at a time."""
    plain = all(map(is_plain, batch.schema.types))
    small = plain and batch.get_total_buffer_size() <= SMALL_BYTES
    for first in range(max(0, skip - done), len(batch), BATCH_ROWS):
        rows = batch.slice(first, BATCH_ROWS)
        if small or (plain and rows.nbytes <= SMALL_BYTES):
            yield _made(file, rows, done + first)
        else:
            yield from _weighed(file, rows, done + first)


def _weighed(file: DataFile, rows: Any, done: int) -> Iterator[Iterable[Record]]:
    weights = sum(map(weights_of, rows.columns), np.zeros(len(rows), np.int64))
    first = 0
    while first < len(rows):
        fit = int(np.searchsorted(np.cumsum(weights[first:]), SLICE_BYTES, side="right"))
        if weights[first] > ROW_BYTES:
            fit = 1
            limit = f"a row may take {format_bytes(ROW_BYTES)}"
            takes = f"takes {format_bytes(int(weights[first]))}; {limit}"
            yield [file.too_large(f"row {done + first + 1}", takes)]
        else:
            fit = max(1, fit)
            yield _made(file, rows.slice(first, fit), done + first)
        first += fit


def _made(file: DataFile, rows: Any, done: int) -> Iterable[Record]:
    try:
        made: list[Record] = rows.to_pylist()
    except (ValueError, OverflowError):  # Parquet's texts are not checked before, nor are dates
        return (_row(file, rows.slice(n, 1), done + n + 1) for n in range(len(rows)))
    return made


def _row(file: DataFile, row: Any, number: int) -> Record:
    record = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            (record[name],) = column.to_pylist()
        except (ValueError, OverflowError) as error:
            fault = "it is not UTF-8"
            if not isinstance(error, UnicodeDecodeError):
                fault = (
                    f"it is {str(column.type)[:80]}, and no value of Python's ({first_line(error)})"
                )
            what = f"{file.path}, row {number}, column {shown(name)}: {fault}"
            return DataError(what, "fix the text or drop the row")
    return record


def _names(schema: Any, columns: Columns) -> tuple[list[str], list[str]]:
    """The names of all columns, and of those that are read; raises Fault where these have no text."""
    names = [_name(field) for field in schema]
    used = useful(names, columns)
    for name in used:
        kind = schema.field(names.index(name)).type
        _check_fields(kind, name)
        check_type(kind, name)
    return names, used


def _name(field: Any) -> str:
    """The field's name; one that is not UTF-8 is no column that is read."""
    try:
        name: str = field.name
    except UnicodeDecodeError as error:
        return error.object.decode(errors="backslashreplace")
    return name


def _check_fields(kind: Any, column: str) -> None:
    while (inner := getattr(kind, "value_type", None)) is not None:  # of a list or a dictionary
        kind = inner
    if pa.types.is_struct(kind):
        fields = [kind.field(number) for number in range(kind.num_fields)]
        check_names([field.name for field in fields], f" in {shown(column)}")
        for field in fields:
            _check_fields(field.type, column)


@contextmanager
def _named(file: DataFile) -> Iterator[None]:
    """Turns errors of Arrow into one that names the file."""
    try:
        yield
    except UnicodeDecodeError as error:
        name = error.object.decode(errors="backslashreplace")
        what = f"{file.path} has the column {shown(name)}: its name is not UTF-8"
        raise DataError(what, "rename the column") from error
    except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{file.path} is damaged or cut off: {first_line(error)}", COPY_AGAIN
        ) from error
