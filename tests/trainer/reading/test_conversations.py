"""Turns as public data sets write them: roles, parts, tool calls, masks, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import DataError
from tests.support.data_files import Write, every_format, json_lines
from trainer.reading.readers import read_rows
from trainer.reading.row import Message, Row

QUESTION = {"role": "user", "content": "a"}
ANSWER = {"role": "assistant", "content": "b"}
CALL = {"name": "weather", "arguments": {"town": "riga"}}
TOOL_CALLS = [{"type": "function", "function": CALL}]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def row_of(path: Path) -> Row:
    (row,) = read_rows(str(path))
    return row


def error_of(folder: Path, messages: object) -> str:
    path = json_lines(folder, [{"messages": [QUESTION, ANSWER]}, {"messages": messages}])
    with pytest.raises(DataError) as caught:
        list(read_rows(str(path)))
    return str(caught.value).removeprefix(f"{path}, row 2, column messages: ")


@every_format
def test_tool_calls_and_their_results_reach_the_row(tmp_path: Path, write: Write) -> None:
    """The same from a table, whose structs have every field of every turn, as null."""
    messages = [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": TOOL_CALLS},
        {"role": "tool", "content": "rain", "tool_call_id": "c1", "name": "weather"},
        {"role": "assistant", "content": "it rains", "reasoning_content": "so it is"},
    ]

    row = row_of(write(tmp_path, [{"messages": messages, "tools": TOOLS}]))

    assert row.tools == tuple(TOOLS)
    assert row.messages == (
        Message("user", "a"),
        Message("assistant", None, is_learnt=True, extra={"tool_calls": TOOL_CALLS}),
        Message("tool", "rain", extra={"tool_call_id": "c1", "name": "weather"}),
        Message("assistant", "it rains", is_learnt=True, extra={"reasoning_content": "so it is"}),
    )


@every_format
@pytest.mark.parametrize("value", [json.dumps(CALL), json.dumps([CALL])])
def test_a_call_in_sharegpt_becomes_tool_calls(tmp_path: Path, write: Write, value: str) -> None:
    turns = [
        ("system", "be brief"), ("human", "a"), ("function_call", value), ("observation", "rain"),
        ("gpt", "it rains"),
    ]  # fmt: skip
    conversation = [{"from": role, "value": text} for role, text in turns]

    row = row_of(write(tmp_path, [{"conversations": conversation, "tools": json.dumps(TOOLS)}]))

    assert [message.role for message in row.messages] == [
        "system", "user", "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert row.messages[2].extra == {"tool_calls": TOOL_CALLS}
    assert row.messages[2].content is None
    assert row.messages[2].is_learnt
    assert row.tools == tuple(TOOLS)


@pytest.mark.parametrize(
    "answer",
    [
        {"role": "assistant", "content": None, "function_call": CALL},
        {"role": "assistant", "tool_calls": json.dumps(TOOL_CALLS)},
        {"role": "assistant", "content": None, "tool_calls": TOOL_CALLS, "refusal": None},
    ],
)
def test_older_ways_to_write_a_call_are_read(tmp_path: Path, answer: dict[str, Any]) -> None:
    row = row_of(json_lines(tmp_path, [{"messages": [QUESTION, answer]}]))

    assert row.messages[-1] == Message(
        "assistant", None, is_learnt=True, extra={"tool_calls": TOOL_CALLS}
    )


@every_format
def test_parts_of_text_are_joined(tmp_path: Path, write: Write) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "image_url": None}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": parts}]

    assert row_of(write(tmp_path, [{"messages": messages}])) == Row.pair("ab", "ab")


@every_format
@pytest.mark.parametrize(
    "mask",
    [{"weight": 0}, {"train": False}, {"training": False}, {"loss": False}, {"trainable": False}],
)
def test_an_answer_that_the_data_mask_is_not_learnt(
    tmp_path: Path, write: Write, mask: dict[str, Any]
) -> None:
    messages = [QUESTION, {**ANSWER, **mask}, QUESTION, ANSWER]

    row = row_of(write(tmp_path, [{"messages": messages}]))

    assert [message.is_learnt for message in row.messages] == [False, False, False, True]
    assert row.messages[1].extra == {}


def test_a_row_ends_with_its_last_learnt_answer(tmp_path: Path) -> None:
    """What follows cannot change the loss."""
    masked = {**ANSWER, "weight": 0}
    path = json_lines(tmp_path, [{"messages": [QUESTION, ANSWER, QUESTION, masked]}])

    assert row_of(path) == Row.pair("a", "b")


@every_format
def test_an_answer_with_an_empty_list_of_calls_has_none(tmp_path: Path, write: Write) -> None:
    """As clients of OpenAI's interface write it; a template would open a call that does not come."""
    messages = [QUESTION, {**ANSWER, "tool_calls": []}]

    assert row_of(write(tmp_path, [{"messages": messages}])) == Row.pair("a", "b")


@pytest.mark.parametrize(
    ("asks", "answers"), [("user ", " Assistant"), ("prompter", "AI"), ("human", "bot")]
)
def test_roles_are_known_by_other_names(tmp_path: Path, asks: str, answers: str) -> None:
    """OpenAssistant's, LangChain's; blanks around them do not count, as in names of columns."""
    messages = [{"role": asks, "content": "a"}, {"role": answers, "content": "b"}]

    assert row_of(json_lines(tmp_path, [{"messages": messages}])) == Row.pair("a", "b")


def test_the_assistant_may_speak_first_and_other_roles_stay(tmp_path: Path) -> None:
    turns = [("assistant", "hi"), ("developer", "be kind"), ("user", "a"), ("assistant", "b")]
    messages = [{"role": role, "content": text} for role, text in turns]

    assert row_of(json_lines(tmp_path, [{"messages": messages}])) == Row.conversation(turns)


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([QUESTION, {"from": "human", "value": "c"}], "the last turn is 'human', not 'assistant'"),
        (
            [QUESTION, {**ANSWER, "content": None}],
            "turn 2 ('assistant') has null content and no tool",
        ),
        ([{"role": "user"}, ANSWER], "turn 1 ('user') has null content and no tool calls; fix the"),
        ([{"content": "a"}, ANSWER], "a turn without a text `role` and `content`; fix the row"),
        (["a", "b"], "a turn without a text `role` and `content`; fix the row or drop it"),
        (
            [QUESTION, {**ANSWER, "content": 3}],
            "turn 2 ('assistant') is int '3', not text; make it",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ANSWER],
            "turn 1 ('user') has a part of type 'image_url': only text is learnt; fix the row",
        ),
        (
            [QUESTION, {**ANSWER, "weight": 0.5}],
            "turn 2 ('assistant') has weight 0.5: it can be 0 or 1 alone; fix the row or drop it",
        ),
        (
            [{**QUESTION, "train": True}, ANSWER],
            "turn 1 ('user') has train True: answers alone can be learnt; fix the row or drop it",
        ),
        (
            [QUESTION, {**ANSWER, "train_detail": [{"begin_offset": 0}]}],
            "turn 2 ('assistant') has train_detail: an answer is learnt as a whole, or not; fix",
        ),
        (
            [QUESTION, {**ANSWER, "loss_mask": 1}],
            "turn 2 ('assistant') has loss_mask 1, which data sets use in several ways; give it weight 0",
        ),
        (
            [QUESTION, {**ANSWER, "loss": 0.35}],
            "turn 2 ('assistant') has loss 0.35: it can be 0 or 1 alone; fix the row or drop it",
        ),
        (
            [QUESTION, {**ANSWER, "weight": 0}],
            "no answer is learnt: each has weight 0 or train false; drop the row",
        ),
        (
            [QUESTION, {"from": "function_call", "value": "weather(riga)"}],
            "turn 2 ('function_call') is not a call of a tool as JSON, with name and arguments; fix",
        ),
        (
            "[{'role': 'user', 'content': 'a'}]",
            "it is str \"[{'role': 'user', 'content': 'a'}]\", which is no list in JSON; write it with json.",
        ),
        ('[{"role": "user", "role": "x"}]', "it has the key role twice in an object; keep one"),
    ],
)
def test_a_conversation_that_cannot_be_learnt_is_refused(
    tmp_path: Path, messages: object, fault: str
) -> None:
    """By the turn, with what stands there."""
    assert error_of(tmp_path, messages).startswith(fault)


def test_half_a_character_is_refused_wherever_a_template_writes_it(tmp_path: Path) -> None:
    answer = {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": {"x": "\ud83d"}}}]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [QUESTION, answer]}))

    with pytest.raises(DataError, match="half a character"):
        list(read_rows(str(path)))


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"tools": {"name": "f"}}, "column tools: it is dict"),
        ({"tools": "weather"}, "column tools: it is str 'weather', not a list"),
    ],
)
def test_tools_that_are_no_list_are_refused(
    tmp_path: Path, record: dict[str, Any], fault: str
) -> None:
    path = json_lines(tmp_path, [{"messages": [QUESTION, ANSWER], **record}])

    with pytest.raises(DataError, match=fault):
        list(read_rows(str(path)))


@pytest.mark.parametrize("history", [["a"], [["a"]], "hello", [["a", "b", "c"]]])
def test_a_history_that_is_no_list_of_pairs_is_refused(tmp_path: Path, history: object) -> None:
    path = json_lines(tmp_path, [{"query": "a", "response": "b", "history": history}])

    with pytest.raises(DataError, match=r"column history: not a list of \[question, answer\]"):
        list(read_rows(str(path)))
