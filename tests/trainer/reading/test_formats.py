"""The same rows from every format, compression and encoding, and what a file is said to be."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.errors import DataError
from tests.support.data_files import (
    TABLES,
    TEXTS,
    Write,
    delimited,
    json_lines,
    packed,
    pairs,
    parquet,
    pretty,
    wrapped,
)
from trainer.reading.json_cursor import Cursor
from trainer.reading.readers import look, read_rows
from trainer.reading.row import Row

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
records = st.lists(
    st.fixed_dictionaries({"prompt": text, "response": text}), min_size=1, max_size=6
)
compressions = st.sampled_from([None, "gzip", "zstd"])
encodings = st.sampled_from(
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)


def rows_of(path: Path) -> list[Row]:
    return list(read_rows(str(path)))


def pairs_of(rows: list[dict[str, str]]) -> list[Row]:
    return [Row.pair(row["prompt"], row["response"]) for row in rows]


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        rows_of(path)
    return str(caught.value)


@pytest.mark.parametrize("write", TEXTS)
@settings(deadline=None)  # files are written
@given(records=records, codec=compressions, encoding=encodings)
def test_texts_give_the_same_rows_in_every_compression_and_encoding(
    tmp_path_factory: pytest.TempPathFactory,
    write: Write,
    records: list[dict[str, str]],
    codec: str | None,
    encoding: str,
) -> None:
    """Also text that holds delimiters, quotes, line breaks and NULs."""
    path = write(tmp_path_factory.mktemp("texts"), records)
    path.write_bytes(path.read_bytes().decode().encode(encoding))

    rows = rows_of(packed(path, codec))

    assert rows == pairs_of(records)


@pytest.mark.parametrize("write", TABLES)
@settings(deadline=None)  # files are written
@given(records=records, codec=compressions)
def test_tables_give_the_same_rows_in_every_compression(
    tmp_path_factory: pytest.TempPathFactory,
    write: Write,
    records: list[dict[str, str]],
    codec: str | None,
) -> None:
    path = packed(write(tmp_path_factory.mktemp("tables"), records), codec)

    assert rows_of(path) == pairs_of(records)


@pytest.mark.parametrize("write", [*TEXTS, *TABLES])
@pytest.mark.parametrize("codec", [None, "gzip", "zstd"])
def test_rows_are_skipped_over_the_borders_of_what_is_read_at_once(
    tmp_path: Path, write: Write, codec: str | None
) -> None:
    path = packed(write(tmp_path, pairs(2500)), codec)

    whole, rest = rows_of(path), list(read_rows(str(path), skip=1301))

    assert whole == pairs_of(pairs(2500))
    assert rest == whole[1301:]


@pytest.mark.parametrize("write", [*TEXTS, *TABLES])
def test_a_row_of_seven_megabytes_is_read(tmp_path: Path, write: Write) -> None:
    """After a small one: it is larger than what is read at once."""
    records = [*pairs(1), {"prompt": "长" * 2_400_000, "response": "b"}, *pairs(2)]

    assert rows_of(write(tmp_path, records)) == pairs_of(records)


@pytest.mark.parametrize(
    ("name", "content", "how"),
    [
        ("a.jsonl", b'{"prompt": "a", "response": "b"}', "JSON lines"),
        ("a.jsonl", b'{"prompt": "a", "response": "b"}\n', "JSON lines"),
        ("a.json", b'{\n "prompt": "a",\n "response": "b"\n}', "JSON objects"),
        ("a.json", b'{"prompt": "a", "response": "b"} {"prompt": "c"}', "JSON objects"),
        ("a.json", b'[{"prompt": "a", "response": "b"}]', "JSON"),
        ("a.json", b'{"n": 1, "data": [{"prompt": "a", "response": "b"}]}', "JSON under data"),
        ("a.json", b'{"prompt": ["a"], "response": ["b"]}', "JSON columns"),
        ("a.json", b'{"prompt": {"0": "a"}, "response": {"0": "b"}}', "JSON columns"),
        ("a.csv", b"prompt,response\na,b\n", "CSV"),
        ("a.csv", b"prompt;response\r\na;b\r\n", "CSV with ;"),
        ("a.txt", b"prompt|response\na|b\n", "CSV with |"),
        ("a.csv", b"prompt\tresponse\na\tb", "TSV"),
        ("a.tsv", b'"prompt"\t"response"\n"a"\t"b"', "TSV"),
    ],
)
def test_a_file_is_what_its_content_says(
    tmp_path: Path, name: str, content: bytes, how: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    (line,) = look([str(path)])

    assert line == f"{path}: {how}; prompt is the prompt, response the answer"
    assert next(read_rows(str(path))) == Row.pair("a", "b")


def test_compression_and_encoding_are_said(tmp_path: Path) -> None:
    path = json_lines(tmp_path, pairs(1))
    path.write_bytes(path.read_text().encode("utf-16"))

    (line,) = look([str(packed(path, "gzip"))])

    assert ": JSON lines, gzip, UTF-16; prompt is the prompt" in line


# --- shapes of JSON


def test_an_object_with_a_list_of_objects_beside_its_text_is_a_row(tmp_path: Path) -> None:
    """A list under a key is a wrapper only where the object is no row itself."""
    path = tmp_path / "row.json"
    path.write_text('{"sources": [{"url": "u"}], "prompt": "a", "response": "b"}')

    assert rows_of(path) == [Row.pair("a", "b")]


def test_a_single_row_that_lacks_a_column_is_no_list_of_rows(tmp_path: Path) -> None:
    """Pairs of preferences have two lists of turns."""
    turns = [{"role": "assistant", "content": "b"}]
    path = json_lines(tmp_path, [{"prompt": "a", "chosen": turns, "rejected": turns}])

    assert error_of(path).startswith(
        f"{path} has no column response (found: chosen, prompt, rejected); name them with"
    )


def test_a_single_conversation_is_a_row(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = pretty(tmp_path, [{"messages": turns}])

    assert rows_of(path) == [Row.pair("a", "b")]


def test_a_list_of_rows_that_is_longer_than_any_row_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows it is not known by then."""
    monkeypatch.setattr("trainer.reading.json_records.LOOK_AHEAD", 100)
    path = wrapped(tmp_path, pairs(50))

    assert rows_of(path) == pairs_of(pairs(50))


@pytest.mark.parametrize("look_ahead", [10, 1 << 20])
def test_two_lists_of_rows_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look_ahead: int
) -> None:
    """Nobody said which to learn."""
    monkeypatch.setattr("trainer.reading.json_records.LOOK_AHEAD", look_ahead)
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"train": pairs(2), "test": pairs(1)}))

    assert error_of(path) == (
        f"{path} holds several lists: train, test; give a file with one of them"
    )


@pytest.mark.parametrize(
    "content",
    ['{"prompt": ["a", "b"], "response": ["c"]}', '{"prompt": {"0": "a"}, "response": {"1": "b"}}'],
)
def test_columns_that_differ_in_their_rows_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "columns.json"
    path.write_text(content)

    assert error_of(path).endswith(
        "is damaged or cut off: the columns prompt and response differ in their rows; copy the file "
        "again"
    )


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ('{"prompt": "a", "prompt": "b", "response": "c"}', "line 1"),
        ('{"prompt": "a", "response": "c"}\n{"id": {"prompt": 1, "prompt": 2}}', "line 2"),
        ('[{"prompt": "a", "response": "c"}, {"prompt": "a", "prompt": "b"}]', "row 2"),
        ('{\n"prompt": "a",\n"response": "c",\n"prompt": "d"}', "line 4"),
        ('{"prompt": ["a"], "response": ["b"], "prompt": ["c"]}', "line 1"),
    ],
)
def test_a_key_that_an_object_has_twice_is_refused(
    tmp_path: Path, content: str, place: str
) -> None:
    """JSON's own rule takes the last one, silently."""
    path = tmp_path / "rows.json"
    path.write_text(content)

    assert error_of(path) == (
        f"{path}, {place} has the key prompt twice in one object; keep one of the two"
    )


def test_an_error_in_a_long_list_is_told_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after all that follows was read: the rest of a large file does not fit into memory."""
    monkeypatch.setattr("trainer.reading.json_cursor.PIECE", 64)
    stream = io.BytesIO(json.dumps(pairs(3000)).replace('"response"', "response", 1).encode())
    cursor = Cursor(stream)
    items = cursor.members()
    next(items)

    with pytest.raises(ValueError, match="Expecting property name"):
        cursor.value()

    assert stream.tell() < 1000


@pytest.mark.parametrize(
    "content",
    [
        '[{"prompt": "a", "response": "b"},]',
        "[{'prompt': 'a'}]",
        '{"prompt": "a",}',
        "[ // rows\n]",
    ],
)
def test_what_looks_like_json_is_told_how_json_is_written(tmp_path: Path, content: str) -> None:
    """Another copy of the file would have the same mistake."""
    path = tmp_path / "rows.json"
    path.write_text(content)

    assert error_of(path).endswith(
        "; write it with json.dumps: JSON has no comments, no comma after the last item, and double quotes "
        "alone"
    )


# --- CSV


def test_a_row_of_csv_with_other_fields_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,response\na,b\n\nc,d, e\n")

    assert error_of(path) == (
        f"{path}, row 2 (through line 4) has 3 fields, the header 2; put a field with a delimiter, a "
        "quote or a line break in double quotes, and double its quotes"
    )


@pytest.mark.parametrize("delimiter", [", ", "; ", "| "])
def test_a_blank_after_each_delimiter_of_the_header_is_no_part_of_a_field(
    tmp_path: Path, delimiter: str
) -> None:
    """The answer would be learnt with the blank, and with its quotes."""
    path = tmp_path / "rows.csv"
    rows = [("prompt", "response"), ("a", '"b, c"'), ("d", "e")]
    path.write_text("".join(f"{first}{delimiter}{second}\n" for first, second in rows))

    assert rows_of(path) == [Row.pair("a", "b, c"), Row.pair("d", "e")]


def test_a_blank_that_begins_a_field_is_kept(tmp_path: Path) -> None:
    """Where the header has none."""
    path = tmp_path / "rows.csv"
    path.write_text("prompt,response\na, b\n")

    assert rows_of(path) == [Row.pair("a", " b")]


def test_a_quote_that_is_not_closed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,response\na,b\nc,"d\ne,f\n')

    assert error_of(path).startswith(
        f"{path}, line 4 is damaged or cut off: unexpected end of data; put a field with"
    )


def test_csv_with_unknown_columns_names_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,text\n1,a\n")

    assert error_of(path).startswith(f"{path} has no columns that are known (found: id, text); ")


def test_csv_that_ends_in_zeros_is_refused(tmp_path: Path) -> None:
    """As a disk leaves a file after a crash."""
    path = delimited(tmp_path, pairs(2))
    path.write_bytes(path.read_bytes() + b"\0" * 64)

    assert "row 3 (through line 4) has 1 fields, the header 2" in error_of(path)


# --- tables


@pytest.mark.parametrize("names", [["prompt", "response", "prompt"], ["id", "response", "id"]])
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, names: list[str]) -> None:
    table, text = tmp_path / "rows.parquet", tmp_path / "rows.csv"
    pq.write_table(pa.table([pa.array(["a"])] * 3, names=names), table)
    text.write_text(",".join(names) + "\na,b,c\n")

    assert error_of(table) == f"{table} has {names[0]} 2 times; drop or rename all but one"
    assert names[0] in error_of(text)


def test_a_field_that_a_struct_has_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    fields = [pa.field(name, pa.string()) for name in ("role", "content", "content")]
    turns = pa.StructArray.from_arrays([pa.array(["user"])] * 3, fields=fields)
    pq.write_table(pa.table({"messages": pa.ListArray.from_arrays([0, 1], turns)}), path)

    assert error_of(path) == (f"{path} has content 2 times in messages; drop or rename all but one")


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
@pytest.mark.parametrize("codec", [None, "gzip"])
def test_every_type_of_text_in_a_table_is_read(
    tmp_path: Path, kind: pa.DataType, codec: str | None
) -> None:
    columns = {name: pa.array(["a", "b"], kind) for name in ("prompt", "response")}
    path = tmp_path / "rows.arrow"
    table = pa.table({"id": [1, 2], **columns})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)

    assert rows_of(packed(path, codec)) == [Row.pair("a", "a"), Row.pair("b", "b")]


# --- what is no data


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\x03\x04\x14\0\0\0[Content_Types].xml", "is an Excel workbook; save the sheet as CSV"),
        (b"PK\x03\x04\x14\0\0\0rows.jsonl", "is a zip archive; unpack it"),
        (b"\xfd7zXZ\0\0\x04", "is an archive; unpack it"),
        (b"rows.jsonl".ljust(257, b"\0") + b"ustar\x0000", "is an archive; unpack it"),
        (b"\n<!DOCTYPE html><html>", "is a web page; download the file itself"),
        (b"\xef\xbb\xbf<HTML lang='en'>", "is a web page; download the file itself"),
        (b"<?xml version='1.0'?><Error>AccessDenied", "is a web page; download the file itself"),
        (b"%PDF-1.7\n%\xe2\xe3", "is a PDF document; give its text as rows"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n",
            "is a Git LFS pointer, not the data; run `git lfs pull`",
        ),
        (
            b"\x89PNG\r\n\x1a\n\0\0\0",
            "is binary: it begins with b'\\x89PNG\\r\\n\\x1a\\n'; give Parquet",
        ),
        (b"Some words.\n", "is neither Parquet, Arrow, JSON nor CSV; give Parquet"),
    ],
)
@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl"])
def test_what_people_save_by_mistake_is_named(
    tmp_path: Path, name: str, content: bytes, what: str
) -> None:
    """A name that promises Parquet is only blamed where the content is nothing known."""
    path = tmp_path / name
    path.write_bytes(content)

    message = error_of(path)

    known = name != "rows.parquet" or not content.startswith((b"Some", b"\x89"))
    assert message.startswith(f"{path} {what}" if known else f"{path} is not a Parquet file: ")


@pytest.mark.parametrize(
    ("text", "encoding", "byte", "guess"),
    [("你好，再见", "gb18030", "C4", "GB18030"), ("d\u00e9j\u00e0 vu", "cp1252", "E9", "CP1252")],
)
@pytest.mark.parametrize("write", [json_lines, delimited, pretty])
def test_another_encoding_is_named_with_the_line_that_converts_it(
    tmp_path: Path, write: Write, text: str, encoding: str, byte: str, guess: str
) -> None:
    path = write(tmp_path, [*pairs(1), {"prompt": "a", "response": text}])
    content = path.read_bytes().decode().replace("第", "").replace("问", "").replace("答", "")
    path.write_bytes(content.encode(encoding))
    place = path.read_bytes().index(bytes.fromhex(byte))

    assert error_of(path) == (
        f"{path} is not UTF-8: byte 0x{byte} at {place}; if it is {guess}, convert it: iconv -f "
        f"{guess} -t UTF-8 {path} > {path.stem}.utf8{path.suffix}"
    )


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_a_file_that_is_packed_twice_is_named(tmp_path: Path, codec: str) -> None:
    path = packed(packed(json_lines(tmp_path, pairs(1)), codec), codec)

    assert error_of(path) == f"{path} is packed twice; unpack it once"


def test_what_pzstd_writes_is_read(tmp_path: Path) -> None:
    """A frame to skip, which says how long the next one is, before each."""
    path = packed(json_lines(tmp_path, pairs(2)), "zstd")
    frame = path.read_bytes()
    path.write_bytes((b"\x50\x2a\x4d\x18\4\0\0\0" + len(frame).to_bytes(4, "little") + frame) * 2)

    assert rows_of(path) == pairs_of(pairs(2) * 2)


def test_another_encoding_in_a_compressed_file_is_unpacked_first(tmp_path: Path) -> None:
    path = json_lines(tmp_path, pairs(1))
    path.write_bytes(path.read_text().encode("gb18030"))
    made = packed(path, "gzip")

    assert error_of(made).endswith(
        f"GB18030, convert it: gzip -dc {made} | iconv -f GB18030 -t UTF-8 > rows.utf8.jsonl"
    )


@pytest.mark.parametrize("write", [json_lines, parquet, delimited])
@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_a_compressed_file_that_is_cut_off_is_refused(
    tmp_path: Path, write: Write, codec: str
) -> None:
    path = packed(write(tmp_path, pairs(5000)), codec)
    path.write_bytes(path.read_bytes()[:-20])

    message = error_of(path)

    assert message.startswith(str(path))
    assert message.endswith(
        " is damaged or cut off: Truncated compressed stream; copy the file again"
    )


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_file_that_is_not_packed_as_its_name_says_is_refused(tmp_path: Path, suffix: str) -> None:
    path = json_lines(tmp_path, pairs(1), name=f"rows.jsonl{suffix}")
    codec = {".gz": "gzip", ".zst": "zstd"}[suffix]

    assert error_of(path) == (
        f"{path} is not {codec}: it begins with b'{{\"pr'; rename it without {suffix} if it is not "
        "packed, or copy it again"
    )


def test_a_packed_file_needs_no_suffix(tmp_path: Path) -> None:
    path = packed(json_lines(tmp_path, pairs(1)), "gzip").rename(tmp_path / "rows")

    assert rows_of(path) == pairs_of(pairs(1))
