"""Data files of every kind, and folders of them: found, looked at, counted and read to the end."""

import csv
import gzip
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from autotune.errors import ChatlmError
from bench.fuzz.case import Broken, Case, Make, Place, Reader
from bench.fuzz.mutations import (
    FILE_NAMES,
    TEXTS,
    as_json,
    damage_bytes,
    damage_document,
    damage_place,
)
from trainer.reading.layouts import BY_NAME, Columns
from trainer.reading.readers import count_rows, look, read_rows
from trainer.reading.sources import find_files

TURNS = [{"role": "system", "content": "s"}, {"role": "user", "content": "ask"}, {"role": "assistant", "content": "say"}]  # fmt: skip
SHAREGPT = [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "say", "weight": 1}]
CALLS = [
    {"role": "user", "content": "weather?"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "w", "arguments": {"town": "riga"}}}]},
]  # fmt: skip
PAIRS: list[dict[str, Any]] = [
    {"prompt": f"第 {n} 问 " + "ask " * (n % 4), "response": f"say {n} é"} for n in range(12)
]
RECORDS: tuple[list[dict[str, Any]], ...] = (
    PAIRS,
    [{"instruction": "do", "input": f"this {n}", "output": "done", "history": [["a", "b"]]} for n in range(4)],
    [{"messages": TURNS, "system": "s", "source": "web"} for _ in range(4)],
    [{"conversations": SHAREGPT, "id": n} for n in range(4)],
    [{"messages": CALLS, "tools": [{"type": "function", "function": {"name": "w"}}]} for _ in range(2)],
)  # fmt: skip
"""Rows of the layouts that the trainer knows."""
STATES: dict[str, Any] = {
    "state.json": {"_data_files": [{"filename": "data-00000.arrow"}], "_split": "train", "_indices_data_files": None},
    "dataset_dict.json": {"splits": ["train", "test"]},
    "dataset_info.json": {"features": {}},
}  # fmt: skip
"""What `datasets` writes beside its data."""


def prepare(folder: Path) -> Make:
    """A file of each kind by name."""
    whole = dict(originals())
    return lambda place, draw: _make(place, draw, whole)


def originals() -> Iterator[tuple[str, bytes]]:
    for number, records in enumerate(RECORDS):
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        yield f"lines{number}.jsonl", lines.encode()
        yield f"list{number}.json", json.dumps(records, indent=1).encode()
        table = pa.Table.from_pylist(records)
        yield f"rows{number}.parquet", parquet(table)
        yield f"rows{number}.arrow", arrow(table, is_stream=False)
    columns = {name: [record[name] for record in PAIRS] for name in PAIRS[0]}
    pandas = {name: {str(n): value for n, value in enumerate(values)} for name, values in columns.items()}  # fmt: skip
    wrapped = {"version": 1, "data": PAIRS, "license": "MIT"}
    for name, document in (("columns", columns), ("pandas", pandas), ("wrapped", wrapped)):
        yield f"{name}.json", json.dumps(document).encode()
    texts = {
        "rows.csv": delimited(","),
        "rows.tsv": delimited("\t"),
        "semicolon.csv": delimited(";"),
    }
    lines0 = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in PAIRS)
    for encoding in ("utf-16", "utf-16-be", "utf-32", "utf-8-sig"):
        texts[f"{encoding}.jsonl"] = lines0.encode(encoding)
        texts[f"{encoding}.csv"] = delimited(",").decode().encode(encoding)
    yield from texts.items()
    table = pa.Table.from_pylist(PAIRS)
    for codec in ("none", "snappy", "gzip", "brotli", "zstd", "lz4"):
        yield f"{codec}.parquet", parquet(table, compression=codec, row_group_size=5)
    yield "v2.parquet", parquet(table, data_page_version="2.0", write_page_index=True)
    yield "delta.parquet", parquet(table, use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY")
    for packed in (None, "lz4", "zstd"):
        yield f"{packed}.stream.arrow", arrow(table, is_stream=True, compression=packed)
    plain = {
        "packed.jsonl": lines0.encode(),
        "packed.csv": delimited(","),
        "packed.parquet": parquet(table),
    }
    plain |= {"packed.stream.arrow": arrow(table, is_stream=True)}
    for name, data in plain.items():
        yield f"{name}.gz", gzip.compress(data, mtime=0)
        yield f"{name}.zst", pa.Codec("zstd").compress(data).to_pybytes()


def parquet(table: Any, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def arrow(table: Any, *, is_stream: bool, compression: str | None = None) -> bytes:
    sink, options = pa.BufferOutputStream(), pa.ipc.IpcWriteOptions(compression=compression)
    open_ = pa.ipc.new_stream if is_stream else pa.ipc.new_file
    with open_(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=5)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def delimited(delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(PAIRS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(PAIRS)
    return text.getvalue().encode()


def _make(place: Place, draw: Random, whole: dict[str, bytes]) -> Case:
    name = draw.choice([*whole])
    path = place.work / name
    match draw.randrange(20):
        case 0:
            path.write_bytes(whole[name])
            damage_place(path, draw, place.outside)
        case 1 | 2 | 3:
            path = place.work / "rows.json"
            path.write_bytes(odd_json(draw))
        case 4 | 5 | 6:
            is_parquet = draw.random() < 0.5
            path = place.work / ("rows.parquet" if is_parquet else "rows.arrow")
            path.write_bytes(odd_table(draw, is_parquet=is_parquet))
        case 7 | 8:
            path = place.work / "rows"
            _folder(path, draw, whole, place.outside)
        case 9:
            path.write_bytes(repacked(whole[name], draw))
        case _:
            path.write_bytes(damage_bytes(whole[name], draw, [*whole.values()]))
    if draw.random() < 0.05 and os.path.lexists(path):
        path = path.rename(path.with_name(draw.choice(FILE_NAMES) + path.name))
    return Case(_readers(str(path), draw), kept=[place.work])


def odd_json(draw: Random) -> bytes:
    """Records with odd values, in one of the shapes that JSON data have."""
    records = damage_document(draw.choice(RECORDS), draw)
    if not isinstance(records, list):
        return as_json(records, draw)
    match draw.randrange(4):
        case 0:
            return as_json(records, draw)
        case 1:
            return as_json({"data": records, "other": draw.choice((1, [], {}, records))}, draw)
        case 2 if all(isinstance(record, dict) for record in records):
            names = [*records[0]] if records else []
            columns = {name: [record.get(name) for record in records] for name in names}
            return as_json(damage_document(columns, draw), draw)
        case _:
            return b"\n".join(as_json(record, draw) for record in records)


def odd_table(draw: Random, *, is_parquet: bool) -> bytes:
    """A table whose columns have types and values that few tables have."""
    names = [
        draw.choice(("prompt", "response", "messages", *TEXTS)) for _ in range(draw.randrange(1, 4))
    ]
    if draw.random() < 0.7:
        names[:2] = ["prompt", "response"]
    names = [name for name in names if name.encode(errors="ignore").decode() == name]
    columns = [
        pa.array(["a", "b", "c"]) if draw.random() < 0.4 else draw.choice(ODD)() for _ in names
    ]
    table = pa.table(columns, names=names)
    if draw.random() < 0.2:
        table = table.replace_schema_metadata(
            {b"pandas": b"\xff{", b"\x1b": b"\x00", b"huggingface": b"[]"}
        )
    if is_parquet:
        try:
            return parquet(table)
        except (pa.ArrowException, UnicodeDecodeError):  # no such column in Parquet
            return parquet(table.select([]))
    return arrow(table, is_stream=draw.random() < 0.5, compression=draw.choice((None, "zstd")))


def _not_utf_8(kind: Any) -> Any:
    width = 8 if kind == pa.large_string() else 4
    offsets = b"".join(n.to_bytes(width, "little") for n in (0, 1, 3, 6))
    return pa.Array.from_buffers(
        kind, 3, [None, pa.py_buffer(offsets), pa.py_buffer(b"\xff\xc3\x28\xed\xa0\x80")]
    )


def _cast(values: list[Any], kind: Any) -> Callable[[], Any]:
    return lambda: pa.array(values).cast(kind, safe=False)


FAR = [2**62, -(2**62), 5]
ODD: tuple[Callable[[], Any], ...] = (
    lambda: pa.array([1, 2, 3]), lambda: pa.array([1.5, float("nan"), None]), lambda: pa.nulls(3),
    lambda: pa.array([b"a", b"\xff", None]), lambda: pa.array(["a", None, "\x1b[31m"]), lambda: pa.array([True, None, False]),
    lambda: pa.array(["a", "", "c"], pa.string_view()), lambda: pa.array(["a", "b", "a"]).dictionary_encode(),
    lambda: pa.array([["a"], [], None]), lambda: pa.array([{"role": "user"}, None, {"role": "x"}]),
    lambda: pa.array([TURNS, TURNS, []]), lambda: pa.array([SHAREGPT, None, SHAREGPT]),
    lambda: pa.array([[("a", 1)], [("a", 1), ("a", 2)], []], pa.map_(pa.string(), pa.int64())),
    lambda: _not_utf_8(pa.string()), lambda: _not_utf_8(pa.large_string()),
    *(_cast(FAR, pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")),
    *(_cast(FAR, pa.duration(unit)) for unit in ("s", "ns")),
    lambda: pa.array(FAR).cast(pa.timestamp("us", tz="Mars/Base")),
    _cast(FAR, pa.date64()), lambda: pa.array([2**31 - 1, -(2**31), 0], pa.int32()).cast(pa.date32()),
    lambda: pa.array([2**60, -1, 0]).view(pa.time64("ns")), lambda: pa.array([1, 2, 3]).cast(pa.decimal256(70, 2)),
    lambda: pa.array([["a", "b"]] * 3, pa.list_(pa.string(), 2)),
    lambda: pa.array([[["a"]], [[None]], []]), lambda: pa.array(["x" * 100_000] * 3),
    lambda: pa.RunEndEncodedArray.from_arrays([2, 3], ["a", "b"]),
    lambda: pa.UnionArray.from_sparse(pa.array([0, 1, 0], pa.int8()), [pa.array(["a", "b", "c"]), pa.array([1, 2, 3])]),
    lambda: pa.StructArray.from_arrays([pa.array(["a"] * 3), pa.array(["b"] * 3)], names=["role", "role"]),
)  # fmt: skip
"""Columns of three values."""


def _folder(folder: Path, draw: Random, whole: dict[str, bytes], outside: Path) -> None:
    """Shards, or what `datasets` writes, with something wrong."""
    rows = folder / "train" if draw.random() < 0.3 else folder
    rows.mkdir(parents=True)
    for name in (
        "data-00000.arrow",
        draw.choice(("data-00001.arrow", "test-2.arrow", "more.jsonl")),
    ):
        (rows / name).write_bytes(whole["rows0.arrow"])
    for name, document in STATES.items():
        if draw.random() < 0.6:
            place = (folder if name == "dataset_dict.json" else rows) / name
            damaged = as_json(damage_document(document, draw), draw)
            place.write_bytes(damage_bytes(damaged, draw) if draw.random() < 0.3 else damaged)
    files = sorted(path for path in folder.rglob("*"))
    for path in draw.sample(files, draw.randrange(3)):
        if os.path.lexists(path):
            damage_place(path, draw, outside)


def repacked(data: bytes, draw: Random) -> bytes:
    """The bytes packed again, once or often, and perhaps damaged in between."""
    for _ in range(draw.choice((1, 1, 2))):
        codec = draw.choice(("gzip", "zstd"))
        data = (
            gzip.compress(data, mtime=0)
            if codec == "gzip"
            else pa.Codec(codec).compress(data).to_pybytes()
        )
    match draw.randrange(4):
        case 0:
            return damage_bytes(data, draw)
        case 1:
            return data * 2
        case 2:
            return gzip.compress(bytes(1 << 26) + data, 1, mtime=0)
        case _:
            return data


def _readers(path: str, draw: Random) -> list[Reader]:
    odd = draw.choice(TEXTS)
    columns = draw.choice((BY_NAME,) * 8 + (Columns("prompt", odd), Columns(messages=odd)))
    skip = draw.choice((0, 0, 1, 5, 12, 10**6))

    def whole() -> None:
        for file in find_files([path]):
            for row in read_rows(file, columns):
                _ = row.prompt, row.response

    def skipped() -> None:
        after = list(read_rows(path, skip=skip))
        try:
            rows = list(read_rows(path))
        except ChatlmError:  # of a row that is skipped
            return
        if after != rows[skip:]:
            raise Broken(f"other rows after {skip} of {len(rows)} are skipped")

    return [
        whole,
        lambda: "\n".join(look([path], columns)),
        lambda: count_rows(find_files([path])),
        skipped,
    ]
