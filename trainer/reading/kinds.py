"""What a data file is, by its first bytes, and the records in it."""

import re
from pathlib import Path

from autotune.errors import DataError
from trainer.reading.arrow_messages import MAGIC, STREAM
from trainer.reading.arrow_tables import arrow_table, parquet_table
from trainer.reading.csv_records import csv_table
from trainer.reading.faults import check_names
from trainer.reading.json_records import json_table
from trainer.reading.layouts import Columns, find_layout, missing_column
from trainer.reading.streams import DataFile, Table, inspect

ADVICE = "give Parquet, Arrow, JSON, JSON lines, CSV or TSV; docs/training.md names the columns"
PIPE = "write it into a file first: rows are read more than once"
STRANGERS = (
    (rb"PK\x03\x04.{0,4000}?(xl/|\[Content_Types)", "an Excel workbook", "save the sheet as CSV"),
    (rb"PK\x03\x04", "a zip archive", "unpack it"),
    (rb"\xd0\xcf\x11\xe0", "an old Office file", "save the sheet as CSV"),
    (rb"\x1f\x8b|\x28\xb5\x2f\xfd", "packed twice", "unpack it once"),
    (rb"%PDF", "a PDF document", "give its text as rows"),
    (rb"7z\xbc\xaf|Rar!|BZh|\xfd7zXZ|.{257}ustar", "an archive", "unpack it"),
    (
        rb"(\xef\xbb\xbf)?\s*(?i:<!doctype|<html|<head|<\?xml)",
        "a web page",
        "download the file itself",
    ),
    (rb"version https://git-lfs", "a Git LFS pointer, not the data", "run `git lfs pull`"),
)
"""What people give by mistake: its first bytes, what it is, and what to do."""
CONTROL = bytes({*range(32)} - set(b"\t\n\r\f\x1a\x1b"))


def check_file(path: str) -> None:
    """Raises DataError where it is missing, empty, or cannot be looked at."""
    try:
        file = Path(path)
        if not file.is_file():
            if file.is_dir() or not file.exists():
                what = "is a folder, not a file" if file.is_dir() else "is not there"
                raise DataError(f"data file {path} {what}", ADVICE)
            raise DataError(f"{path} is a pipe or a device", PIPE)
        if file.stat().st_size == 0:
            raise DataError(f"data file {path} is empty (0 bytes)", ADVICE)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", ADVICE) from error


def open_table(path: str, columns: Columns, skip: int = 0) -> tuple[Table, str]:
    """The file's records after the first `skip`, and what the file is, for people.

    Raises:
        DataError: it holds no records, or is damaged.
        Fault: its columns have no known layout.
        OSError: it cannot be read.
    """
    check_file(path)
    file = inspect(path)
    table = _table(file, columns, skip)
    if table.columns is not None:
        check_names(table.columns)
        if find_layout(tuple(table.columns), columns) is None:
            raise missing_column(table.columns, columns)
    return table, ", ".join((table.kind, *file.words))


def _table(file: DataFile, columns: Columns, skip: int) -> Table:
    head = file.head
    if head.startswith(b"PAR1"):
        return parquet_table(file, columns, skip)
    if head.startswith((MAGIC, STREAM)):
        return arrow_table(file, columns, skip)
    for begins, what, advice in STRANGERS:
        if re.match(begins, head, re.DOTALL):
            raise DataError(f"{file.path} is {what}", advice)
    if file.plain_name.lower().endswith((".parquet", ".pq")):
        what = f"it begins with {head[:4]!r}, not with b'PAR1'"
        raise DataError(f"{file.path} is not a Parquet file: {what}", ADVICE)
    text = file.beginning.lstrip()
    if text[:1] in (b"[", b"{"):
        return json_table(file, columns, skip)
    if not text:
        return Table("text", None, iter(()))
    if any(byte in CONTROL for byte in text[: max(16, text.find(b"\n"))]):
        raise DataError(f"{file.path} is binary: it begins with {head[:8]!r}", ADVICE)
    if table := csv_table(file, columns, skip):
        return table
    raise DataError(f"{file.path} is neither Parquet, Arrow, JSON nor CSV", ADVICE)
