"""Data files as users have them, in every format that the trainer reads."""

import csv
import gzip
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


def wrapped(folder: Path, records: list[Any]) -> Path:
    """Under a key, with scalars before and after."""
    path = folder / "wrapped.json"
    whole = {"version": 1, "data": records, "license": "MIT"}
    path.write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
    return path


def pretty(folder: Path, records: list[Any]) -> Path:
    """Objects over several lines, one after another."""
    path = folder / "pretty.json"
    texts = (json.dumps(record, ensure_ascii=False, indent=2) + "\n" for record in records)
    path.write_text("".join(texts), encoding="utf-8")
    return path


def columnar(folder: Path, records: list[Any]) -> Path:
    """A list for each column."""
    path = folder / "columns.json"
    whole = {name: [record[name] for record in records] for name in records[0]}
    path.write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
    return path


def pandas_json(folder: Path, records: list[Any]) -> Path:
    """As `DataFrame.to_json` writes it: an object for each column."""
    path = folder / "pandas.json"
    whole = {
        name: {str(n): record[name] for n, record in enumerate(records)} for name in records[0]
    }
    path.write_text(json.dumps(whole), encoding="utf-8")
    return path


def delimited(folder: Path, records: list[Any], delimiter: str = ",") -> Path:
    path = folder / f"rows{'.tsv' if delimiter == chr(9) else '.csv'}"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(records)
    return path


def tabbed(folder: Path, records: list[Any]) -> Path:
    return delimited(folder, records, "\t")


def semicolons(folder: Path, records: list[Any]) -> Path:
    return delimited(folder, records, ";")


def arrow_file(folder: Path, records: list[Any]) -> Path:
    path, table = folder / "rows.arrow", pa.Table.from_pylist(records)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1300)
    return path


def arrow_stream(folder: Path, records: list[Any]) -> Path:
    path, table = folder / "rows.arrow", pa.Table.from_pylist(records)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1300)
    return path


def packed(path: Path, codec: str | None) -> Path:
    """The file, compressed in one of the ways that people do."""
    if codec is None:
        return path
    data, suffix = path.read_bytes(), {"gzip": ".gz", "zstd": ".zst"}[codec]
    made = path.with_name(path.name + suffix)
    made.write_bytes(
        gzip.compress(data) if codec == "gzip" else pa.Codec("zstd").compress(data).to_pybytes()
    )
    return made


TEXTS: tuple[Write, ...] = (
    json_lines, as_json, wrapped, pretty, columnar, pandas_json, delimited, tabbed, semicolons,
)  # fmt: skip
TABLES: tuple[Write, ...] = (parquet, arrow_file, arrow_stream)
every_format = pytest.mark.parametrize("write", [parquet, as_json, json_lines])


def pairs(count: int) -> list[dict[str, str]]:
    """Prompts of different lengths, and responses."""
    return [{"prompt": f"第 {i} 问" + "？" * (i % 9), "response": f"答 {i}"} for i in range(count)]
