"""Records from CSV and its kin: the delimiter that makes the header a known layout."""

import csv
import io
from collections.abc import Iterator
from typing import Any

from autotune.errors import DataError
from trainer.reading.layouts import Columns, find_layout
from trainer.reading.streams import DataFile, Table

DELIMITERS = {",": "CSV", ";": "CSV with ;", "\t": "TSV", "|": "CSV with |"}
MOST_CHARACTERS = 1 << 27
"""Of one field; a quote that is not closed would take the rest of the file."""


def csv_table(file: DataFile, columns: Columns, skip: int) -> Table | None:
    """The records after the first `skip`; None where the file does not look like a table."""
    headers = {delimiter: _header(file, delimiter) for delimiter in DELIMITERS}
    chosen = next((d for d, names in headers.items() if find_layout(names, columns)), None)
    if chosen is None:
        chosen = max(headers, key=lambda delimiter: len(headers[delimiter]))
        if len(headers[chosen]) < 2 and not file.stem.endswith((".csv", ".tsv")):
            return None
    return Table(DELIMITERS[chosen], headers[chosen], _records(file, chosen, skip))


def _header(file: DataFile, delimiter: str) -> tuple[str, ...]:
    return tuple(next(_lines(file, delimiter), (0, []))[1])


def _records(file: DataFile, delimiter: str, skip: int) -> Iterator[dict[str, Any]]:
    lines = _lines(file, delimiter)
    _, names = next(lines)
    for number, (line, fields) in enumerate(lines, start=1):
        if number <= skip:
            continue
        if len(fields) != len(names):
            raise DataError(
                f"{file.path}, row {number} (line {line}) has {len(fields)} fields, and the header "
                f"{len(names)}",
                f"put a field with {delimiter!r}, a quote or a line break in double quotes",
            )
        yield dict(zip(names, fields, strict=True))


def _lines(file: DataFile, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The line on which each row ends, and its fields; blank lines are passed over."""
    csv.field_size_limit(MOST_CHARACTERS)
    with file.open_text() as stream, io.TextIOWrapper(stream, "utf-8", newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            for fields in reader:
                if fields:
                    yield reader.line_num, fields
        except (csv.Error, UnicodeDecodeError) as error:
            raise file.damaged(error, f"line {reader.line_num}") from error
