"""Rows from Parquet, JSON and JSON lines, and what is said of files that hold none."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import DataError
from tests.support.data_files import Write, as_json, every_format, json_lines, pairs, parquet
from trainer.reading.kinds import ADVICE
from trainer.reading.readers import count_rows, read_rows
from trainer.reading.row import Row


def rows_of(path: Path) -> list[Row]:
    return list(read_rows(str(path)))


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        rows_of(path)
    return str(caught.value)


@every_format
def test_rows_are_the_same_in_every_format(tmp_path: Path, write: Write) -> None:
    """In order, also over the borders of what is read at once."""
    path = write(tmp_path, pairs(2500))

    rows = rows_of(path)

    assert [row.response for row in rows] == [f"答 {i}" for i in range(2500)]
    assert rows[2] == Row.pair("第 2 问？？", "答 2")
    assert rows[2].prompt == "第 2 问？？"


@every_format
def test_a_conversation_ends_with_the_answer_to_learn(tmp_path: Path, write: Write) -> None:
    """The turns before it are the source."""
    turns = [
        ("system", "短"), ("user", "早"), ("assistant", "早。"), ("user", "?"), ("assistant", "好"),
    ]  # fmt: skip
    messages = [{"role": role, "content": text} for role, text in turns]
    path = write(tmp_path, [{"messages": messages}])

    (row,) = rows_of(path)

    assert row == Row.conversation(turns)
    assert row.prompt == "短\n早\n早。\n?"


@every_format
@pytest.mark.parametrize("skip", [1, 1024, 1025, 1300, 1301, 2499, 2500])
def test_rows_that_were_read_before_are_skipped(tmp_path: Path, write: Write, skip: int) -> None:
    """Whole row groups, parts of one, all of them; the others are the same, and named the same."""
    path = write(tmp_path, pairs(2500))

    rows = list(read_rows(str(path), skip=skip))

    assert rows == rows_of(path)[skip:]


@every_format
def test_a_fault_after_skipped_rows_is_named_by_its_place_in_the_file(
    tmp_path: Path, write: Write
) -> None:
    """Not in what was left of it."""
    path = write(tmp_path, [*pairs(3), {"prompt": "a", "response": None}, *pairs(2)])

    with pytest.raises(DataError, match="row 4, column response: it is missing or null"):
        list(read_rows(str(path), skip=2))


def test_rows_are_counted_where_the_file_says_so(tmp_path: Path) -> None:
    """Parquet does; of lines nobody knows before they are read."""
    table, lines = str(parquet(tmp_path, pairs(7))), str(json_lines(tmp_path, pairs(3)))

    assert count_rows([table, table]) == 14
    assert count_rows([table, lines]) is None


@given(
    records=st.lists(
        st.fixed_dictionaries({"prompt": st.text(max_size=9), "response": st.text(max_size=9)}),
        min_size=1,
        max_size=6,
    ),
    indent=st.sampled_from([None, 1]),
    plain=st.booleans(),
    piece=st.integers(1, 40),
)
def test_a_json_list_reads_the_same_in_any_pieces(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[dict[str, str]],
    indent: int | None,
    plain: bool,
    piece: int,
) -> None:
    """Cut within a character, an escape, a number, or between two items."""
    path = tmp_path_factory.mktemp("json") / "rows.json"
    listed = [{**record, "id": 12345} for record in records]
    path.write_text(json.dumps(listed, indent=indent, ensure_ascii=plain), encoding="utf-8")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("trainer.reading.json_cursor.PIECE", piece)
        rows = rows_of(path)

    assert [{"prompt": row.prompt, "response": row.response} for row in rows] == records


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('[{"prompt":"a","response":"b"} {}]', "'{' where a comma or the list's end is due"),
        ('[{"prompt":"a","response":"b"}', "'the end' where a comma or the list's end is due"),
        ('[{"prompt":"a","response":"b"}] x', "'x' after the list's end"),
    ],
)
def test_a_json_list_that_is_none_says_where(tmp_path: Path, text: str, fault: str) -> None:
    """After rows that were whole."""
    path = tmp_path / "rows.json"
    path.write_text(text)

    assert error_of(path) == f"{path}, row 2 is damaged or cut off: {fault}; copy the file again"


@every_format
def test_other_columns_are_not_looked_at(tmp_path: Path, write: Write) -> None:
    """Whatever they hold."""
    path = write(tmp_path, [{**pair, "id": 3, "tags": None} for pair in pairs(2)])

    assert len(rows_of(path)) == 2


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    """As Windows writes them."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"prompt":"a","response":"b"}\r\n\r\n \n{"prompt":"c","response":"d"}'
    )

    assert [row.prompt for row in rows_of(path)] == ["a", "c"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jsonl", "data file {path} is not there"),
        ("", "data file {path} is a folder, not a file"),
        ("x" * 300, "cannot read {path}: File name too long"),
    ],
)
def test_what_is_no_file_is_named(tmp_path: Path, name: str, message: str) -> None:
    """With the system's reason where it has one, and with what to give instead."""
    path = tmp_path / name

    assert error_of(path) == f"{message.format(path=path)}; {ADVICE}"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_an_empty_file_is_said_to_be_empty(tmp_path: Path, name: str) -> None:
    """Rather than damaged."""
    path = tmp_path / name
    path.touch()

    assert error_of(path) == f"data file {path} is empty (0 bytes); {ADVICE}"


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    """A JSON list of nothing, a table of no rows."""
    listed, table = as_json(tmp_path, []), tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(pairs(1)).slice(1), table)

    assert error_of(listed) == f"data file {listed} has no rows; {ADVICE}"
    assert error_of(table) == f"data file {table} has no rows; {ADVICE}"


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    """By its content; a name that promises Parquet is held to it."""
    text, named = tmp_path / "rows.txt", tmp_path / "rows.parquet"
    text.write_text("Some words about the data.\n")
    named.write_text("prompt,response\na,b\n")

    assert error_of(text) == f"{text} is neither Parquet, Arrow, JSON nor CSV; {ADVICE}"
    assert error_of(named) == (
        f"{named} is not a Parquet file: it begins with b'prom', not with b'PAR1'; {ADVICE}"
    )


@every_format
@pytest.mark.parametrize(
    ("record", "fault"),
    [
        (
            {"prompt": "a", "answer": "b", "id": 1},  # said before any row is looked at
            " has no column response (found: answer, id, prompt); name them with --prompt-column "
            "and --response-column, or --messages-column",
        ),
        (
            {"prompt": "a", "response": None},
            ", row 1, column response: it is missing or null; make it a string or drop the row",
        ),
        (
            {"prompt": 17, "response": "b"},
            ", row 1, column prompt: it is int '17', not text; make it a string or drop the row",
        ),
    ],
)
def test_what_is_missing_or_no_text_is_named_by_row_and_column(
    tmp_path: Path, write: Write, record: dict[str, Any], fault: str
) -> None:
    """With what stands there; rows count from 1, as lines do."""
    path = write(tmp_path, [record])

    assert error_of(path) == f"{path}{fault}"


@pytest.mark.parametrize("write", [as_json, json_lines])
def test_a_row_that_is_no_object_is_named(tmp_path: Path, write: Write) -> None:
    """A list of texts is not prompts and responses."""
    path = write(tmp_path, [*pairs(2), "text"])

    place = "row" if write is as_json else "line"
    assert error_of(path) == (
        f"{path}, {place} 3 is str 'text', not an object; write each {place} as "
        '{"prompt": "...", "response": "..."}'
    )


@pytest.mark.parametrize("write", [as_json, json_lines])
def test_half_a_character_is_named_by_its_place(tmp_path: Path, write: Write) -> None:
    """JSON can write one half of a surrogate pair, which no tokenizer takes."""
    path = write(tmp_path, [])
    row = r'{"prompt": "ok\ud83d", "response": "b"}'
    path.write_text(f"[{row}]" if write is as_json else row)

    assert error_of(path) == (
        f"{path}, row 1, column prompt: half a character, '\\ud83d', at place 2; fix the text or "
        f"drop the row"
    )


QUESTION = {"role": "user", "content": "a"}
ANSWER = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([], "not a list of at least two turns; fix the row or drop it"),
        ("hello", "not a list of at least two turns; fix the row or drop it"),
        (
            [QUESTION, {"role": "assistant"}],
            "turn 2 ('assistant') has null content and no tool calls; fix the row or drop it",
        ),
        (
            [ANSWER, QUESTION],
            "the last turn is 'user', not 'assistant'; end each row with the answer to learn",
        ),
    ],
)
def test_a_conversation_without_an_answer_is_refused(
    tmp_path: Path, messages: object, fault: str
) -> None:
    """By row, with what it lacks."""
    path = json_lines(tmp_path, [{"messages": [QUESTION, ANSWER]}, {"messages": messages}])

    assert error_of(path) == f"{path}, row 2, column messages: {fault}"


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_a_parquet_file_that_is_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    """Wherever it ends: what it holds is listed at its end."""
    path = parquet(tmp_path, pairs(3000))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])

    message = error_of(path)

    assert message.startswith(f"{path} is damaged or cut off: ")
    assert message.endswith("; copy the file again")


def test_parquet_text_that_is_not_utf_8_is_named_by_row_and_column(tmp_path: Path) -> None:
    """Arrow's own string type does not check it."""
    path = tmp_path / "rows.parquet"
    bad = pa.StringArray.from_buffers(
        1, pa.py_buffer(b"\x00\x00\x00\x00\x02\x00\x00\x00"), pa.py_buffer(b"\xff\xfe")
    )
    pq.write_table(pa.table({"prompt": bad, "response": ["b"]}), path)

    assert error_of(path) == (
        f"{path}, row 1, column prompt: it is not UTF-8; fix the text or drop the row"
    )


@given(share=st.floats(0.001, 0.999))
def test_a_json_file_that_is_cut_off_is_refused(
    tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    """In the middle of a row, of a character, or between two rows."""
    path = as_json(tmp_path_factory.mktemp("json"), pairs(20))
    whole = path.read_bytes()
    path.write_bytes(whole[: max(1, int(len(whole) * share))])

    assert re.match(rf"{path}(, row \d+)? is damaged or cut off: ", error_of(path))


@given(missing=st.integers(2, 30))
def test_a_json_line_that_is_cut_off_is_named(
    tmp_path_factory: pytest.TempPathFactory, missing: int
) -> None:
    """Also within a character: it takes three bytes."""
    path = json_lines(tmp_path_factory.mktemp("lines"), pairs(20))
    path.write_bytes(path.read_bytes()[:-missing])

    message = error_of(path)

    assert message.startswith(f"{path}, line 20 is damaged or cut off: ")
    assert message.endswith("copy the file again (JSON lines hold one object a line, JSON a list)")
