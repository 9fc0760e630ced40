"""Reads rows from files, in order; errors name file, row and column.

It holds a batch of rows or a piece of text at a time, whatever the file's size.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import resources

from autotune.errors import DataError, first_line, named
from trainer.reading.arrow_tables import count_parquet_rows
from trainer.reading.faults import FIX_ROW, Fault, shown
from trainer.reading.kinds import ADVICE, open_table
from trainer.reading.layouts import BY_NAME, Columns, Layouts, listed
from trainer.reading.row import Row
from trainer.reading.sources import find_files
from trainer.reading.streams import COPY_AGAIN, Record

MOST_SCANNED = 100_000
"""Rows after a faulty one that are looked at for others."""


def bundled(name: str) -> str:
    """The path of the bundled `train` or `valid` file."""
    return str(resources.files("trainer") / "assets" / "data" / f"{name}.jsonl")


def read_rows(path: str, columns: Columns = BY_NAME, *, skip: int = 0) -> Iterator[Row]:
    """Every row of the file after the first `skip`, which are not checked; errors count rows from 1.

    Raises:
        DataError: it is missing, empty, damaged, of another kind, or a row is not text.
    """
    number = skip
    layouts = Layouts(columns)
    with _errors(path):
        table, _ = open_table(path, columns, skip)
        for number, record in enumerate(table.records, start=skip + 1):
            if isinstance(row := _row(record, layouts, path, number), DataError):
                raise _with_others(row, table.records, layouts, path, number)
            yield row
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
            many = f" ({count} files)" if len(files) > 1 else ""
            lines.append(f"{named(name)}{many}: {how}")
    return lines


def count_rows(paths: Sequence[str]) -> int | None:
    """Rows of those files together; None if one is not Parquet: other formats do not store the number."""
    counts = [count_parquet_rows(path) for path in paths]
    return None if None in counts else sum(filter(None, counts))


def _how(path: str, columns: Columns) -> str:
    with _errors(path):
        table, kind = open_table(path, columns)
        record = next(table.records, None)
        if record is None:
            raise DataError(f"data file {path} has no rows", ADVICE)
        layouts = Layouts(columns)
        if isinstance(row := _row(record, layouts, path, 1), DataError):
            raise _with_others(row, table.records, layouts, path, 1)
    assert isinstance(record, dict)
    layout = layouts.of(record)
    ignored = [name for name in table.columns or record if name not in layout.used]
    return f"{kind}; {layout.words}" + (f"; ignored: {listed(ignored)}" if ignored else "")


def _row(record: Record, layouts: Layouts, path: str, number: int) -> Row | DataError:
    """The record as a row, or what is wrong with it; raises DataError where its columns are, in the first one."""
    if isinstance(record, DataError):
        return record
    try:
        return layouts.row(record)
    except Fault as fault:
        if fault.column is None and number == 1:
            raise DataError(f"{path} {fault.what}", fault.hint) from None
        if fault.column is None:  # the first row has it
            return DataError(f"{path}, row {number} {fault.what}", FIX_ROW)
        place = f"{path}, row {number}, column {shown(fault.column)}"
        return DataError(f"{place}: {fault.what}", fault.hint)
    except RecursionError:
        return DataError(f"{path}, row {number} has lists or objects nested too deeply", FIX_ROW)


def _with_others(
    error: DataError, records: Iterator[Record], layouts: Layouts, path: str, number: int
) -> DataError:
    """The error of that row, which also says how many of the rows after it are faulty, and where the next is."""
    following = itertools.islice(enumerate(records, start=number + 1), MOST_SCANNED)
    faulty, last = [], number
    with suppress(DataError, Fault, OSError):  # of the rest of the file
        for last, record in following:
            if isinstance(_row(record, layouts, path, last), DataError):
                faulty.append(last)
    if not faulty:
        return error
    rows, are = ("row", "is") if len(faulty) == 1 else ("rows", "are")
    within = f" of the next {last - number:,}" if last - number == MOST_SCANNED else ""
    others = f"{len(faulty):,} more {rows}{within} {are} faulty, first row {faulty[0]}"
    return DataError(f"{error.what} ({others})", error.hint)


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
