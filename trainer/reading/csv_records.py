"""Records from CSV and its kin; the delimiter is the one that makes the header a known layout."""

import csv
import functools
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from autotune.errors import DataError
from trainer.reading.faults import ROW_BYTES, ROW_VALUES
from trainer.reading.json_cursor import LARGE, MANY, TooLarge
from trainer.reading.layouts import Columns, find_layout
from trainer.reading.streams import DataFile, Record, Table

DELIMITERS = {",": "CSV", "\t": "TSV", ";": "CSV with ;", "|": "CSV with |"}
QUOTE = (
    "put a field with a delimiter, a quote or a line break in double quotes, and double its quotes"
)


LONG = 1 << 20
"""Characters of a row whose delimiters are counted: each may end a field."""


@dataclass(slots=True)
class Taken:
    """What the lines of a row took so far."""

    characters: int = 0
    values: int = 0


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
    with _opened(file, delimiter) as (rows, _):
        try:
            return tuple(next(filter(None, rows), ()))
        except csv.Error:
            return ()


def _records(file: DataFile, delimiter: str, skip: int) -> Iterator[Record]:
    with _opened(file, delimiter) as (rows, taken):
        names: list[str] | None = None
        number = 0
        while True:
            try:
                for fields in rows:
                    taken.characters = 0
                    if not fields:  # a blank line
                        continue
                    if names is None:
                        names = fields
                        continue
                    number += 1
                    if number > skip:
                        if len(fields) == len(names):
                            yield dict(zip(names, fields, strict=True))
                        else:
                            yield _other_fields(file, names, fields, number, rows.line_num)
                return
            except csv.Error as error:  # the next row begins in the next line
                taken.characters = 0
                number += 1
                if number > skip:
                    yield file.damaged(error, f"line {rows.line_num}", QUOTE)


def _other_fields(
    file: DataFile, names: list[str], fields: list[str], number: int, line: int
) -> DataError:
    has = f"has {len(fields)} fields, the header {len(names)}"
    return DataError(f"{file.path}, row {number} (through line {line}) {has}", QUOTE)


@contextmanager
def _opened(file: DataFile, delimiter: str) -> Iterator[tuple[Any, Taken]]:
    """The rows as lists of text, as `csv.reader` gives them; and what they took, to be cleared after each.

    Where the header has a blank after each delimiter, it is no part of a field: `"a", "b"` would keep its quotes.
    """
    csv.field_size_limit(ROW_BYTES)
    header = file.beginning.lstrip().split(b"\n")[0].decode("utf-8", "ignore")
    is_spaced = delimiter in header and header.count(delimiter) == header.count(f"{delimiter} ")
    with file.open_text() as stream, io.TextIOWrapper(stream, "utf-8", newline="") as text:
        taken = Taken()
        reader = csv.reader(
            _lines(text, delimiter, taken), delimiter=delimiter, strict=True,
            skipinitialspace=is_spaced,
        )  # fmt: skip
        try:
            yield reader, taken
        except TooLarge as error:
            raise file.too_large(
                f"the row through line {reader.line_num + 1}", str(error)
            ) from error
        except (csv.Error, UnicodeDecodeError) as error:
            raise file.damaged(error, f"line {reader.line_num}", QUOTE) from error


def _lines(text: TextIO, delimiter: str, taken: Taken) -> Iterator[str]:
    """The lines; raises TooLarge where those of a row take too much."""
    for line in iter(functools.partial(text.readline, ROW_BYTES + 1), ""):
        taken.characters += len(line)
        if taken.characters > LONG:
            before = taken.values if taken.characters > len(line) else 0
            taken.values = before + line.count(delimiter)
            if taken.characters > ROW_BYTES or taken.values > ROW_VALUES:
                raise TooLarge(LARGE if taken.characters > ROW_BYTES else MANY)
        yield line
