"""One faulty row does not hide the others; no name or value in a file ends in a traceback."""

import json
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from autotune.errors import DataError
from tests.support.data_files import (
    TABLES,
    TEXTS,
    Write,
    arrow_file,
    arrow_stream,
    as_json,
    delimited,
    json_lines,
    pairs,
    parquet,
)
from trainer.reading.readers import look, read_rows
from trainer.reading.row import Row

FAULTY = {"prompt": None, "response": "b"}
MISSING = "it is missing or null"
HINT = "make it a string or drop the row"


def error_of(path: Path, skip: int = 0) -> str:
    with pytest.raises(DataError) as caught:
        list(read_rows(str(path), skip=skip))
    return str(caught.value).removeprefix(str(path))


@pytest.mark.parametrize("write", [*TABLES, json_lines, as_json])
@pytest.mark.parametrize(
    ("faulty", "others"),
    [
        ([3], ""),
        ([3, 1400], " (1 more row is faulty, first row 1400)"),
        ([1, 2, 700, 1400], " (3 more rows are faulty, first row 2)"),
    ],
)
def test_a_faulty_row_does_not_hide_the_others(
    tmp_path: Path, write: Write, faulty: list[int], others: str
) -> None:
    """Those after it are counted, over the borders of what is read at once."""
    records: list[Any] = pairs(1500)
    for number in faulty:
        records[number - 1] = FAULTY
    path = write(tmp_path, records)

    assert error_of(path) == f", row {faulty[0]}, column prompt: {MISSING}{others}; {HINT}"


def test_faults_of_every_kind_count(tmp_path: Path) -> None:
    """Also lines that are no JSON, or no objects, or too large."""
    path = json_lines(tmp_path, [*pairs(2), FAULTY])
    lines = ["{", "[]", '{"a": 1, "a": 2}', "[" * 9000, '{"prompt": "' + "x" * (17 << 20), '"a"']
    with path.open("a") as file:
        file.write("\n".join([*lines, json.dumps(pairs(1)[0]), json.dumps(FAULTY)]))

    assert error_of(path) == (
        f", row 3, column prompt: {MISSING} (7 more rows are faulty, first row 4); {HINT}"
    )
    assert error_of(path, skip=3).startswith(
        ", line 4 is damaged or cut off: Expecting property name"
    )
    assert " (6 more rows are faulty, first row 5); fix the line" in error_of(path, skip=3)


def test_rows_of_csv_count(tmp_path: Path) -> None:
    path = delimited(tmp_path, pairs(2))
    with path.open("a") as file:
        file.write('a\nb,c\n"d"e,f\ng,h,i\n')

    message = error_of(path)

    assert message.startswith(
        ", row 3 (through line 4) has 1 fields, the header 2 (2 more rows are faulty, first row 5); "
    )


def test_faults_are_counted_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.reading.readers.MOST_SCANNED", 10)
    path = json_lines(tmp_path, [FAULTY] * 30)

    assert error_of(path) == (
        f", row 1, column prompt: {MISSING} (10 more rows of the next 10 are faulty, first row 2); {HINT}"
    )


def test_damage_after_a_faulty_row_ends_the_count(tmp_path: Path) -> None:
    path = as_json(tmp_path, [FAULTY, FAULTY, *pairs(1)])
    path.write_bytes(path.read_bytes()[:-9])

    assert error_of(path) == (
        f", row 1, column prompt: {MISSING} (1 more row is faulty, first row 2); {HINT}"
    )


def test_a_look_counts_them_too(tmp_path: Path) -> None:
    """It is what a command prints first."""
    path = json_lines(tmp_path, [FAULTY, *pairs(2), FAULTY])

    with pytest.raises(DataError, match=r"\(1 more row is faulty, first row 4\)"):
        look([str(path)])


def test_rows_of_parquet_that_are_not_utf_8_count(tmp_path: Path) -> None:
    """One of them takes no other row with it."""
    path = parquet(tmp_path, [{"prompt": f"a{n}a", "response": "b"} for n in range(5)])
    pq.write_table(pq.read_table(path), path, compression="none", use_dictionary=False)
    content = path.read_bytes()
    for text in (b"a1a", b"a3a"):  # the first are the rows, those after it statistics
        content = content.replace(struct.pack("<I", 3) + text, struct.pack("<I", 3) + b"a\xffa")
    path.write_bytes(content)

    assert error_of(path) == (
        ", row 2, column prompt: it is not UTF-8 (1 more row is faulty, first row 4); fix the text or "
        "drop the row"
    )


# --- names and values


def renamed(path: Path, old: bytes, new: bytes) -> Path:
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


@pytest.mark.parametrize("write", [arrow_file, arrow_stream])
def test_a_name_that_is_not_utf_8_is_no_matter_where_it_is_not_needed(
    tmp_path: Path, write: Write
) -> None:
    path = write(tmp_path, [{**pair, "other": "x"} for pair in pairs(3)])

    (line,) = look([str(renamed(path, b"other", b"oth\xff\xfe"))])

    assert line.endswith(r"; ignored: oth\xff\xfe")
    assert len(list(read_rows(str(path)))) == 3


def test_a_name_of_parquet_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    """Arrow opens no such file."""
    table = pa.table({"prompt": ["a"], "response": ["b"], "other": ["c"]})
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path, store_schema=False)

    message = error_of(renamed(path, b"other", b"oth\xff\xfe"))

    assert message == r" has the column oth\xff\xfe: its name is not UTF-8; rename the column"


@pytest.mark.parametrize("write", [parquet, arrow_file, arrow_stream])
def test_metadata_that_is_not_utf_8_is_no_matter(tmp_path: Path, write: Write) -> None:
    """Of pandas, of Hugging Face, of anyone."""
    path = tmp_path / "rows"
    facts = {b"pandas": b"{\xff\xfe", b"huggingface": b"\xed\xa0\x80", b"\xff": b"\xff"}
    table = pa.Table.from_pylist(pairs(3)).replace_schema_metadata(facts)
    if write is parquet:
        pq.write_table(table, path)
    else:
        new = pa.ipc.new_file if write is arrow_file else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table)

    assert len(list(read_rows(str(path)))) == 3


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        (
            r'{"\ud800": 1, "response": "b"}',
            r" has no column prompt (found: response, '\ud800'); name them with --prompt-column and "
            "--response-column, or --messages-column",
        ),
        (
            r'{"messages": [{"role": "\ud800", "content": "a"}, {"role": "assistant", "content": "b"}]}',
            r", row 1, column messages: half a character, '\ud800', at place 0; fix the text or drop the row",
        ),
        (
            r'{"messages": [{"role": "user", "content": "a"}, '
            r'{"role": "assistant", "content": "b", "tool_calls": [{"\udfff": 1}]}]}',
            r", row 1, column messages: half a character, '\udfff', at place 0; fix the text or drop the row",
        ),
        (
            r'{"messages": [{"role": "user", "content": "a", "x\udfff": "y"}, '
            r'{"role": "assistant", "content": "b"}]}',
            r", row 1, column messages: half a character, '\udfff', at place 1; fix the text or drop the row",
        ),
        (
            r'{"prompt": "a", "response": "b", "tools": [{"x": {"\udfff": 1}}]}',
            r", row 1, column tools: half a character, '\udfff', at place 0; fix the text or drop the row",
        ),
        (
            r'{"prompt": "a", "response": "b", "history": 5}',
            ", row 1, column history: not a list of [question, answer]; fix the row or drop it",
        ),
        (
            '{"prompt": "a", "response": "b", "n": 1' + "0" * 5000 + "}",
            ", line 1 is damaged or cut off: a number has over 4,300 digits; copy the file again",
        ),
        (
            '{"prompt": "a", "response": "b", "n": ' + "[" * 90000 + "}",
            ", line 1 has lists or objects nested too deeply; fix the row or drop it",
        ),
        (
            '{"prompt": "a", "response": "b", "tools": ' + "[" * 700 + "]" * 700 + "}",
            ", row 1 has lists or objects nested too deeply; fix the row or drop it",
        ),
    ],
)  # fmt: skip
def test_strange_names_and_values_of_json_are_named(
    tmp_path: Path, record: str, fault: str
) -> None:
    """A template would write them, and the tokenizer end the run."""
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{record}\n{record}\n")

    assert error_of(path).replace(" (1 more row is faulty, first row 2)", "") == fault


def test_a_strange_key_that_nobody_wants_is_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(r'{"\ud800": "\udfff", "prompt": "a", "response": "b"}')

    assert list(read_rows(str(path))) == [Row.pair("a", "b")]


def test_values_in_a_message_are_short(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "x" * 9999, "content": "b"}]
    path = json_lines(tmp_path, [{"messages": turns}])

    assert error_of(path) == (
        f", row 1, column messages: the last turn is '{'x' * 40}', not 'assistant'; end each row with "
        "the answer to learn"
    )


@pytest.mark.parametrize("write", TEXTS)
def test_control_characters_of_a_file_do_not_reach_a_terminal(tmp_path: Path, write: Write) -> None:
    path = write(tmp_path, [{"\x1b[2Jx": "\x1b[2J", "prompt": "\x1b[2J"}])

    assert "\x1b" not in error_of(path)
