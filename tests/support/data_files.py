"""Data files as users have them, in every format that the trainer reads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

Write = Callable[[Path, list[Any]], Path]


def parquet(folder: Path, records: list[Any]) -> Path:
    """A row group holds more than the reader takes at once."""
    path = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(records), path, row_group_size=1300)
    return path


def as_json(folder: Path, records: list[Any]) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def json_lines(folder: Path, records: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text("".join(lines), encoding="utf-8")
    return path


every_format = pytest.mark.parametrize("write", [parquet, as_json, json_lines])


def pairs(count: int) -> list[dict[str, str]]:
    """Prompts of different lengths, and responses."""
    return [{"prompt": f"第 {i} 问" + "？" * (i % 9), "response": f"答 {i}"} for i in range(count)]
