"""Each layout of columns that public data sets have, as one `Row`."""

import json
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import DataError
from tests.support.data_files import Write, as_json, delimited, every_format, json_lines, parquet
from trainer.reading.layouts import BY_NAME, Columns
from trainer.reading.readers import look, read_rows
from trainer.reading.row import Message, Row

PAIR = Row.pair("a", "b")
TURNS = [("user", "a"), ("assistant", "b")]
MESSAGES = [{"role": role, "content": text} for role, text in TURNS]
SHAREGPT = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]


def row_of(path: Path, columns: Columns = BY_NAME) -> Row:
    (row,) = read_rows(str(path), columns)
    return row


def error_of(path: Path, columns: Columns = BY_NAME) -> str:
    with pytest.raises(DataError) as caught:
        list(read_rows(str(path), columns))
    return str(caught.value).removeprefix(f"{path}")


@every_format
@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "a", "response": "b"},
        {"prompt": "a", "completion": "b"},
        {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
        {"question": "a", "answer": "b"},
        {"query": "a", "response": "b"},
        {"instruction": "a", "output": "b"},
        {"instruction": "a", "input": "", "output": "b"},
        {"instruction": "a", "input": None, "output": "b", "system": None, "history": None},
        {"messages": MESSAGES},
        {"messages": json.dumps(MESSAGES)},
        {"messages": SHAREGPT},
        {"messages": [{"role": "human", "content": "a"}, {"role": "GPT", "content": "b"}]},
        {"messages": {"role": ["user", "assistant"], "content": ["a", "b"]}},
        {"conversations": SHAREGPT},
        {"conversations": MESSAGES},
        {"conversation": SHAREGPT},
        {" Prompt": "a", "RESPONSE ": "b"},
        {"prompt": "a", "messages": MESSAGES, "prompt_id": "x"},
        {"prompt": "a", "response": None, "messages": MESSAGES},
        {"prompt": "a", "response": "b", "messages": SHAREGPT[:1]},
    ],
    ids=str,
)
def test_public_layouts_are_read_without_renaming(
    tmp_path: Path, write: Write, record: dict[str, Any]
) -> None:
    """A prompt and its response win over messages; a prompt alone does not."""
    assert list(read_rows(str(write(tmp_path, [record] * 2)))) == [PAIR] * 2


@every_format
def test_alpaca_has_a_system_message_earlier_turns_and_an_input(
    tmp_path: Path, write: Write
) -> None:
    """Earlier answers are learnt, as those of conversations are."""
    record = {
        "instruction": "add", "input": "1 1", "output": "2", "system": "be brief",
        "history": [["hi", "hello"], ["how", "well"]],
    }  # fmt: skip

    row = row_of(write(tmp_path, [record]))

    turns = [("system", "be brief"), ("user", "hi"), ("assistant", "hello")]
    turns += [("user", "how"), ("assistant", "well"), ("user", "add\n1 1"), ("assistant", "2")]
    assert row == Row.conversation(turns)


def test_structures_are_json_text_in_csv(tmp_path: Path) -> None:
    record = {
        "instruction": "add", "output": "2", "history": json.dumps([["hi", "hello"]]),
        "tools": json.dumps([{"name": "f"}]), "system": "",
    }  # fmt: skip

    row = row_of(delimited(tmp_path, [record]))

    assert [message.text for message in row.messages] == ["hi", "hello", "add", "2"]
    assert row.tools == ({"name": "f"},)


@every_format
def test_a_prompt_of_messages_is_never_learnt(tmp_path: Path, write: Write) -> None:
    """As TRL does: its earlier answers are context."""
    prompt = [*MESSAGES, {"role": "user", "content": "c"}]

    row = row_of(write(tmp_path, [{"prompt": prompt, "completion": MESSAGES[1:]}]))

    assert [message.is_learnt for message in row.messages] == [False, False, False, True]


@every_format
def test_a_system_column_comes_before_a_conversation(tmp_path: Path, write: Write) -> None:
    record = {"conversations": SHAREGPT, "system": "be brief"}

    assert row_of(write(tmp_path, [record])) == Row.conversation([("system", "be brief"), *TURNS])


def test_a_system_column_that_differs_from_the_conversations_own_is_refused(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "be kind"}, *MESSAGES]
    path = json_lines(tmp_path, [{"messages": turns, "system": "be kind"}])
    other = json_lines(tmp_path, [{"messages": turns, "system": "be brief"}], "other.jsonl")

    assert row_of(path) == Row.conversation([("system", "be kind"), *TURNS])
    assert error_of(other) == (
        ", row 1, column system: the conversation begins with another system message; drop one of the "
        "two"
    )


def test_layouts_mix_in_one_file(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"prompt": "a", "response": "b"},
        {"messages": MESSAGES},
        {"conversations": SHAREGPT},
    ]
    names = dict.fromkeys(name for record in records for name in record)
    filled = [{**dict.fromkeys(names), **record} for record in records]
    lines, table = json_lines(tmp_path, records), parquet(tmp_path, filled)

    assert list(read_rows(str(lines))) == [PAIR] * 3
    assert list(read_rows(str(table))) == [PAIR, *[Row.conversation(TURNS)] * 2]


@pytest.mark.parametrize(
    ("columns", "record"),
    [
        (Columns(prompt="ask", response="say"), {"ask": "a", "say": "b", "prompt": "x"}),
        (Columns(prompt="ask"), {"ask": "a", "output": "b"}),
        (Columns(response="say"), {"question": "a", "say": "b", "response": "x"}),
        (Columns(messages="chat"), {"chat": MESSAGES, "prompt": "x", "response": "y"}),
        (Columns(prompt="ASK", response="Say"), {"ask": "a", " say": "b"}),
        (Columns(prompt="Ask", response="say"), {"Ask": "a", "ask": "x", "say": "b"}),
        (Columns(response="chosen"), {"prompt": "a", "chosen": MESSAGES[1:], "rejected": []}),
    ],
    ids=str,
)
@every_format
def test_columns_that_the_user_names_come_first(
    tmp_path: Path, write: Write, columns: Columns, record: dict[str, Any]
) -> None:
    """One of them alone goes with a known one."""
    assert row_of(write(tmp_path, [record]), columns) == PAIR


@every_format
@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        (
            Columns(prompt="promt"),
            " has no column promt (found: prompt, response); did you mean prompt?",
        ),
        (
            Columns(messages="chat"),
            " has no column chat (found: prompt, response); name another",
        ),
    ],
)
def test_a_column_that_is_named_and_missing_is_refused(
    tmp_path: Path, write: Write, columns: Columns, fault: str
) -> None:
    """With the nearest names."""
    path = write(tmp_path, [{"prompt": "a", "response": "b"}])

    assert error_of(path, columns) == fault
    with pytest.raises(DataError) as caught:
        look([str(path)], columns)
    assert str(caught.value) == f"{path}{fault}"


@every_format
@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"text": "a"}, " has no columns that are known (found: text); name them with "),
        ({"question": "a"}, " has no column answer (found: question); name them with "),
        ({"output": "a"}, " has no column instruction (found: output); name them with "),
        (
            {"\x1b[31mred": "a"},
            " has no columns that are known (found: '\\x1b[31mred'); name them with ",
        ),
    ],
)
def test_columns_that_make_no_row_are_named(
    tmp_path: Path, write: Write, record: dict[str, Any], fault: str
) -> None:
    """Safe for a terminal: a name may hold its control characters."""
    message = error_of(write(tmp_path, [record]))

    assert message == f"{fault}--prompt-column and --response-column, or --messages-column"


@every_format
@pytest.mark.parametrize("columns", [BY_NAME, Columns(prompt="PROMPT")])
def test_names_that_differ_in_capitals_alone_are_refused(
    tmp_path: Path, write: Write, columns: Columns
) -> None:
    """Unless the user named one of them exactly."""
    path = write(tmp_path, [{"prompt": "a", "Prompt": "x", "response": "b"}])

    assert error_of(path, columns) == (
        " has the columns prompt and Prompt, which are one name here; drop one"
    )


@pytest.mark.parametrize(
    ("record", "how"),
    [
        (
            {"id": 1, "instruction": "a", "input": "x", "output": "b"},
            "instruction and input are the prompt, output the answer; ignored: id",
        ),
        (
            {"prompt": "a", "response": "b", "messages": MESSAGES},
            "prompt is the prompt, response the answer; ignored: messages",
        ),
        (
            {"conversations": SHAREGPT, "system": "s", "tools": []},
            "conversations is the conversation, with system and tools",
        ),
    ],
)
def test_how_a_file_is_read_is_said_in_a_line(
    tmp_path: Path, record: dict[str, Any], how: str
) -> None:
    path = as_json(tmp_path, [record])

    assert look([str(path)]) == [f"{path}: JSON; {how}"]


def test_a_look_reads_the_first_row_alone(tmp_path: Path) -> None:
    """And refuses what training would refuse there."""
    good = json_lines(tmp_path, [{"prompt": "a", "response": "b"}, {"prompt": 1}])
    bad = json_lines(tmp_path, [{"prompt": 1, "response": "b"}], "bad.jsonl")

    assert len(look([str(good)])) == 1
    with pytest.raises(DataError, match="row 1, column prompt: it is int '1', not text"):
        look([str(bad)])


def test_messages_have_roles_texts_and_what_the_loss_counts() -> None:
    """The interface that encoders build on."""
    assert PAIR.messages == (Message("user", "a"), Message("assistant", "b", is_learnt=True))
