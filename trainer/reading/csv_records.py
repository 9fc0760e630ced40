"""Records from CSV and its kin; the delimiter is the one that makes the header a known layout."""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from autotune.errors import DataError
from trainer.reading.layouts import Columns, find_layout
from trainer.reading.streams import DataFile, Table

DELIMITERS = {",": "CSV", "\t": "TSV", ";": "CSV with ;", "|": "CSV with |"}
MOST_CHARACTERS = 1 << 27
"""Of one field: a quote that is not closed would take the rest of the file."""
QUOTE = (
    "put a field with a delimiter, a quote or a line break in double quotes, and double its quotes"
)


def csv_table(file: DataFile, columns: Columns, skip: int) -> Table | None:
    """The records after the first `skip`; None where the file does not look like a table."""
    headers = {delimiter: _header(file, delimiter) for delimiter in DELIMITERS}
    chosen = next((d for d, names in headers.items() if find_layout(names, columns)), None)
    if chosen is None:
        chosen = max(headers, key=lambda delimiter: len(headers[delimiter]))
        if len(headers[chosen]) < 2 and not file.plain_name.lower().endswith((".csv", ".tsv")):
            return None
    return Table(DELIMITERS[chosen], headers[chosen], _records(file, chosen, skip))


def _header(file: DataFile, delimiter: str) -> tuple[str, ...]:
    """The first row; empty where its quotes contradict the delimiter."""
    with _opened(file, delimiter) as rows:
        try:
            return tuple(next(filter(None, rows), ()))
        except csv.Error:
            return ()


def _records(file: DataFile, delimiter: str, skip: int) -> Iterator[dict[str, Any]]:
    with _opened(file, delimiter) as rows:
        filled = filter(None, rows)  # a blank line has no fields
        names = next(filled)
        for number, fields in enumerate(filled, start=1):
            if number <= skip:
                continue
            if len(fields) != len(names):
                raise DataError(
                    f"{file.path}, row {number} (through line {rows.line_num}) has {len(fields)} "
                    f"fields, the header {len(names)}",
                    QUOTE,
                )
            yield dict(zip(names, fields, strict=True))


@contextmanager
def _opened(file: DataFile, delimiter: str) -> Iterator[Any]:
    """The rows as lists of text, as `csv.reader` gives them.

    Where the header has a blank after each delimiter, it is no part of a field: `"a", "b"` would keep its quotes.
    """
    csv.field_size_limit(MOST_CHARACTERS)
    header = file.beginning.lstrip().split(b"\n")[0].decode("utf-8", "ignore")
    is_spaced = delimiter in header and header.count(delimiter) == header.count(f"{delimiter} ")
    with file.open_text() as stream, io.TextIOWrapper(stream, "utf-8", newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True, skipinitialspace=is_spaced)
        try:
            yield reader
        except (csv.Error, UnicodeDecodeError) as error:
            raise file.damaged(error, f"line {reader.line_num}", QUOTE) from error
