"""Reading holds a batch of rows or a piece of text, whatever the file's size."""

import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.support.data_files import TABLES, TEXTS, Write, packed, pairs
from trainer.reading.readers import read_rows


@pytest.mark.parametrize("write", [*TEXTS, *TABLES])
@pytest.mark.parametrize("codec", [None, "gzip"])
def test_five_times_the_rows_take_no_more_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write, codec: str | None
) -> None:
    """Also where the whole file is one line; a row group of the tables has 1,300."""
    monkeypatch.setattr("trainer.reading.json_cursor.PIECE", 1 << 12)
    monkeypatch.setattr("trainer.reading.json_records.LOOK_AHEAD", 1 << 14)
    few, many = (packed(write(folder(tmp_path, n), rows(n)), codec) for n in (1300, 6500))

    assert peak(many) < 1.3 * peak(few)


def rows(count: int) -> list[dict[str, Any]]:
    return [{**pair, "id": str(number)} for number, pair in enumerate(pairs(count))]


def folder(parent: Path, count: int) -> Path:
    made = parent / str(count)
    made.mkdir()
    return made


def peak(path: Path) -> int:
    """Bytes of Python's objects, and of Arrow's while a batch is held."""
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        arrow = max(pa.total_allocated_bytes() for _ in read_rows(str(path))) - before
        python: int = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return python + int(arrow)
