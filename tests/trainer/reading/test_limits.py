"""Whatever a file unpacks to, a row takes a bounded share of memory, or an error says what is too large."""

import gzip
import itertools
import json
import os
import struct
from collections import namedtuple
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from autotune.errors import DataError
from tests.support.data_files import json_lines, packed, pairs, parquet
from tests.support.processes import printed_by
from trainer.reading.readers import count_rows, read_rows

MIB = 1 << 20
LARGE = "takes over 16 MiB, more than a row may; split it or drop it"
MANY = "has over 1,048,576 values, more than a row may; split it or drop it"
SMALLER = (
    "write it anew, like pq.write_table(table, path, row_group_size=1000, use_dictionary=False)"
)


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(read_rows(str(path)))
    return str(caught.value).removeprefix(str(path))


def named_often(text: str, times: int) -> pa.Array:
    """A column that holds the text once."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), [text])


def repeated(text: str, times: int) -> pa.Array:
    """A list column of one row: so many turns that the file holds once."""
    role, content = named_often("user", times), named_often(text, times)
    turns = pa.StructArray.from_arrays([role, content], names=["role", "content"])
    return pa.ListArray.from_arrays([0, times], turns)


def parquet_of(folder: Path, columns: dict[str, Any], **choices: Any) -> Path:
    """Without Arrow's own schema, which would bring dictionaries back as such."""
    path = folder / "rows.parquet"
    pq.write_table(pa.table(columns), path, store_schema=False, compression="zstd", **choices)
    return path


def arrow_of(folder: Path, columns: dict[str, Any], codec: str | None = "zstd") -> Path:
    path, table = folder / "rows.arrow", pa.table(columns)
    options = pa.ipc.IpcWriteOptions(compression=codec)
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema, options=options) as writer,
    ):
        writer.write_table(table)
    return path


PEAK = """
import os, threading, time
import trainer.reading.readers as readers
from autotune.errors import DataError

def held():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon"))

def watch():
    while True:
        most[0] = max(most[0], held())
        time.sleep(0.001)

before, most = held(), [0]
threading.Thread(target=watch, daemon=True).start()
try:
    for row in readers.read_rows(os.environ["ROWS"]):
        pass
except DataError:
    pass
print((most[0] - before) >> 10)
"""


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: parquet_of(
            folder, {"prompt": named_often("x" * 4 * MIB, 256), "response": ["b"] * 256}
        ),
        lambda folder: parquet_of(folder, {"messages": repeated("x" * MIB, 2000)}),
        lambda folder: parquet_of(folder, {"messages": repeated("x", 8_000_000)}),
        lambda folder: arrow_of(folder, {"prompt": ["x" * MIB] * 400, "response": ["b"] * 400}),
        lambda folder: arrow_of(
            folder, {"prompt": named_often("x" * 4 * MIB, 256), "response": ["b"] * 256}
        ),
        lambda folder: arrow_of(folder, {"messages": repeated("x", 8_000_000)}),
    ],
    ids=["dictionary", "dictionary-in-list", "list", "arrow", "arrow-dictionary", "arrow-list"],
)
def test_a_small_file_takes_bounded_memory(tmp_path: Path, write: Any) -> None:
    """MiB beyond those of the imports; each of these files takes kilobytes."""
    path = write(tmp_path)

    assert path.stat().st_size < MIB
    assert int(printed_by(PEAK, ROWS=str(path))) < 350


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("rows.jsonl", b'{"prompt": "%b", "response": "b"}\n', "line 1"),
        ("rows.json", b'[{"prompt": "%b", "response": "b"}]', "row 1"),
        ("rows.json", b'{"data": [{"prompt": "%b", "response": "b"}]}', "line 1"),
        ("rows.json", b'{"prompt": ["%b"], "response": ["b"]}', "line 1"),
        ("rows.csv", b"prompt,response\n%b,b\n", "the row through line 2"),
        ("rows.csv", b'prompt,response\n"%b\n",b\n', "the row through line 2"),
    ],
)
def test_a_row_of_text_that_is_too_large_is_refused(
    tmp_path: Path, name: str, content: bytes, place: str
) -> None:
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress(content % (b"a" * 17 * MIB), 1))

    assert error_of(path) == f", {place} {LARGE}"


@pytest.mark.parametrize("write", [parquet_of, arrow_of])
def test_a_row_of_a_table_that_is_too_large_is_refused_by_its_number(
    tmp_path: Path, write: Any
) -> None:
    """Also where each of its texts is small enough."""
    texts = ["a", "x" * 9 * MIB, "c"]
    path = write(tmp_path, {"prompt": texts, "response": texts})

    message = error_of(path)

    assert message == ", row 2 takes 18 MiB; a row may take 16 MiB; split it or drop it"


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        (
            "rows.jsonl",
            b'{"prompt": "a", "response": "b"}\n{"prompt": [%b1], "response": "b"}\n',
            "line 2",
        ),
        ("rows.json", b'[{"prompt": [%b1], "response": "b"}]', "row 1"),
        ("rows.csv", b"prompt,response\n%b,b\n", "the row through line 2"),
    ],
)
def test_a_row_of_too_many_values_is_refused(
    tmp_path: Path, name: str, content: bytes, place: str
) -> None:
    """Each takes up to a hundred times its text."""
    path = tmp_path / name
    path.write_bytes(content % (b"1," * (1 << 21)))

    assert error_of(path) == f", {place} {MANY}"


def test_many_commas_in_a_text_are_no_values(tmp_path: Path) -> None:
    text = ",[{" * MIB
    path = json_lines(tmp_path, [{"prompt": text, "response": "b"}])

    (row,) = read_rows(str(path))

    assert row.prompt == text


def test_an_object_of_endless_keys_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("{" + ",".join(f'"{n}":1' for n in range(900_000)) + "}")

    assert error_of(path) == f", line 1 {MANY}"


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        (
            {"prompt": ["x" * 40 * MIB], "response": ["b"]},
            "a row of 40 MiB in prompt; the limit is 16 MiB; split it or drop it",
        ),
        (
            {"messages": repeated("x", 8_000_000)},
            f"rows of up to 153 MiB in messages.list.element.role; the limit is 96 MiB; {SMALLER}",
        ),
        (
            {"prompt": ["x" * MIB] * 300, "response": ["b"] * 300},
            f"pages of 300 MiB in prompt; the limit is 256 MiB; {SMALLER}",
        ),
    ],
)  # fmt: skip
def test_what_arrow_would_unpack_at_once_is_refused_before_it_does(
    tmp_path: Path, columns: dict[str, Any], what: str
) -> None:
    path = parquet_of(tmp_path, columns, use_dictionary="messages" in columns)

    assert error_of(path) == f" has in row group 1 {what}"


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "zstd", "lz4", "brotli"])
def test_rows_of_any_pages_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, codec: str
) -> None:
    """With every look at the pages that there is: at dictionaries, and at where lists begin rows."""
    monkeypatch.setattr("trainer.reading.parquet_pages.BATCH_BYTES", 4000)
    prompts = [f"p{n % 7}" * 9 for n in range(3000)]
    turns = [[["q", f"a{n}"]] * (n % 5) for n in range(3000)]
    columns = {"prompt": prompts, "response": ["b"] * 3000, "history": turns}
    path = tmp_path / "rows.parquet"
    pq.write_table(
        pa.table(columns), path, compression=codec, data_page_version=version,
        data_page_size=500, row_group_size=1300, write_batch_size=64,
    )  # fmt: skip

    rows = list(read_rows(str(path)))

    assert [(row.messages[-2].content, len(row.messages)) for row in rows] == [
        (prompt, 2 + 2 * len(said)) for prompt, said in zip(prompts, turns, strict=True)
    ]


def test_columns_that_nobody_wants_are_not_read(tmp_path: Path) -> None:
    """Images beside the text."""
    path = parquet_of(tmp_path, {**pairs_as_columns(5), "image": ["x" * 20 * MIB] * 5})
    stream = arrow_of(tmp_path, {**pairs_as_columns(5), "image": ["x" * 20 * MIB] * 5})

    assert len(list(read_rows(str(path)))) == len(list(read_rows(str(stream)))) == 5


def pairs_as_columns(count: int) -> dict[str, list[str]]:
    return {name: [pair[name] for pair in pairs(count)] for name in ("prompt", "response")}


@pytest.mark.parametrize("codec", [None, "lz4", "zstd"])
@pytest.mark.parametrize("limit", [100, 1 << 30])
def test_a_batch_that_memory_cannot_hold_is_read_from_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str | None, limit: int
) -> None:
    monkeypatch.setattr("trainer.reading.arrow_messages.MEMORY_BYTES", limit)
    monkeypatch.setattr("trainer.reading.arrow_messages.SPARE_BYTES", 0)
    columns: dict[str, Any] = pairs_as_columns(2000)
    columns |= {"id": list(range(2000)), "system": named_often("s", 2000)}
    path = arrow_of(tmp_path, columns, codec)

    rows = list(read_rows(str(path)))

    assert [row.response for row in rows] == columns["response"]
    assert {row.messages[0].content for row in rows} == {"s"}


def test_a_summary_of_parquet_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"prompt": ["a"], "response": ["b"]})
    pq.write_table(table.replace_schema_metadata({"x": "y" * 20 * MIB}), path)

    assert count_rows([str(path)]) is None
    assert error_of(path) == (
        " has a summary of 47 MiB; the limit is 16 MiB; write it anew with fewer columns, or fewer and "
        "larger row groups"
    )


def test_a_schema_that_names_a_long_text_many_times_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.reading.arrow_messages.SCHEMA_BYTES", 50_000)
    path = arrow_of(tmp_path, {f"{n}" * 1000: ["a"] for n in range(100)})

    assert error_of(path) == (
        " has columns whose names and descriptions take over 49 KiB; write it anew with the columns "
        "of text alone"
    )


def test_a_type_that_holds_no_text_is_refused(tmp_path: Path) -> None:
    path = arrow_of(tmp_path, {"prompt": pa.RunEndEncodedArray.from_arrays([2], ["a"]), "response": ["a", "b"]})  # fmt: skip

    assert error_of(path) == (
        " has the type run_end_encoded<run_ends: int64, values: string> in column prompt, which is not "
        "read; save it as text, or as lists and structs of text"
    )


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_unpacking_leaves_the_disk_space_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    """And no file behind."""
    path = packed(parquet(tmp_path, pairs(3)), codec)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage((1 << 30) + 100))

    assert error_of(path) == (
        f" unpacks to over 0 B, and {folder} is nearly full; set TMPDIR to a folder with space"
    )
    assert list(folder.iterdir()) == []


def test_a_folder_for_unpacked_files_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = packed(parquet(tmp_path, pairs(3)), "gzip")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))

    with pytest.raises(DataError) as caught:
        list(read_rows(str(path)))

    assert str(caught.value) == (
        f"cannot write into {tmp_path}/none: No such file or directory; set TMPDIR to a folder with "
        "space"
    )


@pytest.mark.parametrize("write", [parquet_of, arrow_of])
def test_a_file_that_is_cut_while_it_is_read_is_damaged(tmp_path: Path, write: Any) -> None:
    """A mapped one would end the process."""
    columns = {
        name: [os.urandom(500).hex() for _ in range(3000)] for name in ("prompt", "response")
    }
    path = tmp_path / "rows"
    tables = [pa.table(columns)] * 3
    if write is parquet_of:
        pq.write_table(pa.concat_tables(tables), path, row_group_size=3000)
    else:
        with (
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_stream(sink, tables[0].schema) as writer,
        ):
            for table in tables:
                writer.write_table(table)
    rows = read_rows(str(path))
    list(itertools.islice(rows, 100))

    os.truncate(path, 1000)

    with pytest.raises(DataError, match="is damaged or cut off: "):
        list(rows)


def test_names_in_a_message_are_short(tmp_path: Path) -> None:
    """A file may have any number of columns, of any length."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({f"column {n:05}" + "x" * 1000: n for n in range(5000)}))

    message = error_of(path)

    assert "xxx…, column 00001x" in message
    assert " and 4,980 more); name them" in message
    assert len(message) < 2500


CHANGED = """
import os, resource
from pathlib import Path
from autotune.errors import DataError
from trainer.reading.readers import count_rows, look, read_rows

resource.setrlimit(resource.RLIMIT_DATA, (1 << 31, 1 << 31))
path = Path(os.environ["ROWS"])
content = path.read_bytes()
for place in range(len(content)):
    for bits in (1, 255):
        path.write_bytes(content[:place] + bytes([content[place] ^ bits]) + content[place + 1 :])
        try:
            count_rows([str(path)])
            look([str(path)])
            sum(1 for _ in read_rows(str(path)))
        except DataError:
            pass
        except BaseException as error:
            print(place, bits, repr(error))
"""


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: parquet(folder, pairs(3)),
        lambda folder: parquet(folder, [{"history": [["q", "a"]], **pair} for pair in pairs(3)]),
        lambda folder: arrow_of(folder, {**pairs_as_columns(3), "system": named_often("s", 3)}),
        lambda folder: arrow_of(folder, {"history": [[["q", "a"]]] * 3, **pairs_as_columns(3)}, None),
    ],
    ids=["parquet", "parquet-list", "arrow", "arrow-list"],
)  # fmt: skip
def test_no_changed_byte_ends_in_anything_but_an_error_of_data(tmp_path: Path, write: Any) -> None:
    """Arrow ends the process for some; others lead it out of its memory, or into all of it."""
    assert printed_by(CHANGED, ROWS=str(write(tmp_path))) == ""


def test_a_part_of_a_message_that_lies_outside_of_it_is_damage(tmp_path: Path) -> None:
    """It was copied for ever."""
    path = arrow_of(tmp_path, pairs_as_columns(3), None)
    content = path.read_bytes()
    size = next(n for n in range(8, 1 << 16) if content.count(struct.pack("<qq", 0, n)) == 1)
    path.write_bytes(content.replace(struct.pack("<qq", 0, size), struct.pack("<qq", -(1 << 40), 1 << 50)))  # fmt: skip

    assert error_of(path) == (
        " is damaged or cut off: a part of a message lies outside of it; copy the file again"
    )
