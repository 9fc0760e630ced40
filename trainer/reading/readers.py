"""Reads rows from files, in order; errors name file, row and column.

It holds a batch of rows or a piece of text at a time, whatever the file's size.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from autotune.errors import DataError, first_line
from trainer.reading.faults import FIX_ROW, Fault, shown
from trainer.reading.kinds import ADVICE, open_table
from trainer.reading.layouts import BY_NAME, Columns, layout_of, row_of
from trainer.reading.row import Row
from trainer.reading.sources import find_files
from trainer.reading.streams import COPY_AGAIN


def bundled(name: str) -> str:
    """The path of the bundled `train` or `valid` file."""
    return str(resources.files("trainer") / "assets" / "data" / f"{name}.jsonl")


def read_rows(path: str, columns: Columns = BY_NAME, *, skip: int = 0) -> Iterator[Row]:
    """Every row of the file after the first `skip`, which are not checked; errors count rows from 1.

    Raises:
        DataError: it is missing, empty, damaged, of another kind, or a row is not text.
    """
    number = skip
    with _errors(path):
        table, _ = open_table(path, columns, skip)
        for number, record in enumerate(table.records, start=skip + 1):
            yield _row(record, columns, path, number)
    if number == 0:
        raise DataError(f"data file {path} has no rows", ADVICE)


def look(names: Sequence[str], columns: Columns = BY_NAME) -> list[str]:
    """A line for each of the names that says how its files are read; reads their first rows alone.

    Raises:
        DataError: a file cannot be read, or has other columns.
    """
    lines = []
    for name in names:
        files = find_files([name])
        for how, count in Counter(_how(path, columns) for path in files).items():
            lines.append(f"{name} ({count} files): {how}" if len(files) > 1 else f"{name}: {how}")
    return lines


def count_rows(paths: Sequence[str]) -> int | None:
    """Rows of those files together; None if one is not Parquet: other formats do not store the number."""
    try:
        rows: int = sum(pq.read_metadata(path).num_rows for path in paths)
    except (pa.ArrowException, OSError):  # not Parquet, or damaged: the reader's error says which
        return None
    return rows


def _how(path: str, columns: Columns) -> str:
    with _errors(path):
        table, kind = open_table(path, columns)
        record = next(table.records, None)
    if record is None:
        raise DataError(f"data file {path} has no rows", ADVICE)
    _row(record, columns, path, 1)
    layout = layout_of(record, columns)
    ignored = [shown(name) for name in table.columns or record if name not in layout.used]
    return f"{kind}; {layout.words}" + (f"; ignored: {', '.join(ignored)}" if ignored else "")


def _row(record: dict[str, Any], columns: Columns, path: str, number: int) -> Row:
    try:
        return row_of(record, columns)
    except Fault as fault:
        if fault.column is None and number == 1:
            raise DataError(f"{path} {fault.what}", fault.hint) from None
        if fault.column is None:  # the first row has it
            raise DataError(f"{path}, row {number} {fault.what}", FIX_ROW) from None
        place = f"{path}, row {number}, column {shown(fault.column)}"
        raise DataError(f"{place}: {fault.what}", fault.hint) from None


@contextmanager
def _errors(path: str) -> Iterator[None]:
    """Turns what a reader raises about a file as a whole into an error that names it."""
    try:
        yield
    except Fault as fault:
        raise DataError(f"{path} {fault.what}", fault.hint) from None
    except OSError as error:
        if error.strerror is None:  # Arrow's, of a stream
            what = f"{path} is damaged or cut off: {first_line(error)}"
            raise DataError(what, COPY_AGAIN) from error
        raise DataError(f"cannot read {path}: {error.strerror}", ADVICE) from error
