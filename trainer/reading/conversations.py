"""From the turns of a record to messages: roles, texts, tool calls, and what the loss counts."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.reading.faults import FIX_ROW, Fault, check_text, kind, shown
from trainer.reading.json_cursor import DuplicateKey, parse
from trainer.reading.row import ANSWERS, Message

ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), ANSWERS),
    **dict.fromkeys(("tool", "observation", "function_response", "tool_response", "function"), "tool"),
    "system": "system",
}  # fmt: skip
"""The roles by the names that public data sets give them; another role stays as it is."""
CALLS = ("function_call", "tool_call")
"""Roles of a turn that calls a tool, as JSON."""
SAYS_MORE = ("tool_calls", "reasoning_content", "reasoning", "thinking")
"""What an answer may say without content."""
READ = ("role", "from", "content", "value", "weight", "train", "training", "function_call")
"""Fields of a turn that do not travel to the template as they are."""


def messages_of(value: Any, column: str, *, least: int = 2) -> list[Message]:
    """The conversation in that column, a list of turns that ends with an answer; also as JSON text."""
    value = _parsed(value, column)
    if isinstance(value, dict) and all(isinstance(part, list) for part in value.values()):
        # as `datasets` stores a sequence of structs: a list for each field
        value = [
            dict(zip(value, turn, strict=False)) for turn in zip(*value.values(), strict=False)
        ]
    if not isinstance(value, list) or len(value) < least:
        turns = "two turns" if least == 2 else "one turn"
        raise Fault(f"not a list of at least {turns}", FIX_ROW, column=column)
    return [_message(turn, f"turn {n}", column) for n, turn in enumerate(value, start=1)]


def said(value: Any, role: str, column: str) -> list[Message]:
    """What that role says: a text, or a list of turns; those of a prompt are never learnt."""
    if not (isinstance(value, list) and value and isinstance(value[0], dict)):
        check_text(value, column)
        return [Message(role, value, is_learnt=role == ANSWERS)]
    messages = messages_of(value, column, least=1)
    if role == ANSWERS:
        return messages
    return [Message(each.role, each.content, extra=each.extra) for each in messages]


def earlier_turns(value: Any, column: str) -> list[Message]:
    """The messages of a history: a list of [question, answer], also as JSON text."""
    messages: list[Message] = []
    for pair in _parsed(value, column) or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise Fault("not a list of [question, answer]", FIX_ROW, column=column)
        messages += [*said(pair[0], "user", column), *said(pair[1], ANSWERS, column)]
    return messages


def through_last_learnt(messages: Sequence[Message], column: str) -> Sequence[Message]:
    """The messages without those after the last learnt one, which cannot change the loss."""
    if messages[-1].role != ANSWERS:
        raise Fault(
            f"the last turn is {messages[-1].role!r}, not 'assistant'",
            "end each row with the answer to learn",
            column=column,
        )
    last = max((n for n, each in enumerate(messages) if each.is_learnt), default=None)
    if last is None:
        what = "no answer is learnt: each has weight 0 or train false"
        raise Fault(what, "drop the row", column=column)
    return messages[: last + 1]


def tools_of(value: Any, column: str) -> tuple[Any, ...]:
    """The descriptions of tools: a list, also as JSON text."""
    tools = _clean(_parsed(value, column) or [], column)
    if not isinstance(tools, list):
        raise Fault(f"it is {kind(tools)}, not a list", FIX_ROW, column=column)
    return tuple(tools)


def _message(turn: Any, place: str, column: str) -> Message:
    role, content = None, None
    if isinstance(turn, dict):
        role = _first(turn, "role", "from")
        content = _first(turn, "content", "value")
    if not isinstance(role, str):
        raise Fault("a turn without a text `role` and `content`", FIX_ROW, column=column)
    place = f"{place} ({role!r})"
    extra = {
        name: _clean(v, column) for name, v in turn.items() if v is not None and name not in READ
    }
    if role.lower() in CALLS:
        calls, content = content, None
    else:
        calls = turn.get("function_call")
    if calls is not None:
        extra["tool_calls"] = _calls(calls, place, column)
    role = ROLES.get(role.lower(), ANSWERS if role.lower() in CALLS else role)
    text = _text(content, place, column)
    if text is None and not any(extra.get(name) for name in SAYS_MORE):
        what = f"{place} has null content and no tool calls"
        raise Fault(what, FIX_ROW, column=column)
    return Message(role, text, is_learnt=_is_learnt(turn, role, place, column), extra=extra)


def _first(turn: Mapping[str, Any], *names: str) -> Any:
    return next((value for name in names if (value := turn.get(name)) is not None), None)


def _text(content: Any, place: str, column: str) -> str | None:
    """The content as one text; parts are joined."""
    parts = content if isinstance(content, list) else [content]
    texts: list[str] = []
    for part in parts:
        if isinstance(part, dict):
            if part.get("type", "text") != "text" or part.get("text") is None:
                what = f"{place} has a part of type {part.get('type')!r}: only text is learnt"
                raise Fault(what, FIX_ROW, column=column)
            part = part["text"]
        if part is not None or isinstance(content, list):
            check_text(part, column, place)
            texts.append(part)
    return None if content is None else "".join(texts)


def _is_learnt(turn: Mapping[str, Any], role: str, place: str, column: str) -> bool:
    """Whether the loss counts it; raises Fault for a mask that cannot be followed."""
    learnt = role == ANSWERS
    for name in ("weight", "train", "training"):
        mask = turn.get(name)
        if mask is None:
            continue
        if mask not in (0, 1):
            what = f"{place} has {name} {mask!r}: only 0 and 1 can be learnt"
            raise Fault(what, FIX_ROW, column=column)
        if mask and name != "weight" and role != ANSWERS:
            what = f"{place} has {name} {mask!r}: only answers can be learnt"
            raise Fault(what, FIX_ROW, column=column)
        learnt = learnt and bool(mask)
    return learnt


def _calls(value: Any, place: str, column: str) -> list[dict[str, Any]]:
    """Calls of tools as templates take them, from one call or a list, also as JSON text."""
    calls = _clean(_parsed(value, column), column)
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        what = f"{place} is not a call of a tool as JSON, with name and arguments"
        raise Fault(what, FIX_ROW, column=column)
    return [{"type": "function", "function": call} for call in calls]


def _parsed(value: Any, column: str) -> Any:
    """The value; a text that is JSON as what it says, a blank one as None."""
    if not isinstance(value, str):
        return value
    try:
        return parse(value.strip()) if value.strip() else None
    except (ValueError, RecursionError):
        return value
    except DuplicateKey as error:
        what = f"it has the key {shown(error.key)} twice in an object"
        raise Fault(what, "keep one", column=column) from error


def _clean(value: Any, column: str) -> Any:
    """Without null fields, which columns of structs add; raises Fault for half a character."""
    match value:
        case dict():
            return {name: _clean(v, column) for name, v in value.items() if v is not None}
        case list():
            return [_clean(item, column) for item in value]
        case str():
            check_text(value, column)
    return value
