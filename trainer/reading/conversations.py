"""From the turns of a record to messages: roles, texts, tool calls, and what the loss counts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from trainer.reading.faults import (
    FIX_ROW,
    MOST_SHOWN,
    SPLIT,
    Fault,
    check_text,
    kind,
    quoted,
    shown,
)
from trainer.reading.json_cursor import DuplicateKey, TooLarge, parse
from trainer.reading.row import ANSWERS, Message

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "ai", "bot"), ANSWERS),
    **dict.fromkeys(("tool", "observation", "function_response", "tool_response", "function"), "tool"),
    **dict.fromkeys(CALLS := ("function_call", "tool_call"), ANSWERS),
    "system": "system",
}  # fmt: skip
"""The roles by the names that public data sets give them; another role stays as it is.

The content of those in `CALLS` is a call of a tool, as JSON.
"""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names of the field that holds what a model thinks before it answers."""
SAYS_MORE = ("tool_calls", *REASONING)
"""What an answer may say without content."""
MASKS = ("weight", "train", "training", "loss", "trainable")
"""Fields that say whether the loss counts an answer: OpenAI's, axolotl's, those of ms-swift and XTuner."""
UNCLEAR = ("mask", "masked", "loss_mask", "loss_weight", "loss_scale")
"""Fields that may say so too: 1 masks in some data, and counts in other."""
NO_JSON = "write it with json.dumps, not with str"
READ = ("role", "from", "content", "value", "function_call", "train_detail", *MASKS)
"""Fields of a turn that do not travel to the template as they are."""


def messages_of(value: Any, column: str) -> list[Message]:
    """The conversation in that column: a list of turns that ends with an answer, also as JSON text."""
    turns = _turns(value, column)
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{") and not turns:
        raise Fault(f"it is {kind(value)}, which is no list in JSON", NO_JSON, column=column)
    if len(turns) < 2:
        raise Fault("not a list of at least two turns", FIX_ROW, column=column)
    return _answered(turns, column)


def said(value: Any, role: str, column: str) -> list[Message]:
    """What that role says: a text, or a list of turns; those of a prompt are never learnt."""
    if not (isinstance(value, list) and value and isinstance(value[0], dict)):
        check_text(value, column)
        return [Message(role, value, is_learnt=role == ANSWERS)]
    if role == ANSWERS:
        return _answered(value, column)
    return [replace(each, is_learnt=False) for each in _messages(value, column)]


def earlier_turns(value: Any, column: str) -> list[Message]:
    """The messages of a history: a list of [question, answer], also as JSON text."""
    messages: list[Message] = []
    pairs = _parsed(value, column) or []
    if not isinstance(pairs, list):
        raise Fault("not a list of [question, answer]", FIX_ROW, column=column)
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise Fault("not a list of [question, answer]", FIX_ROW, column=column)
        messages += [*said(pair[0], "user", column), *said(pair[1], ANSWERS, column)]
    return messages


def through_last_learnt(messages: Sequence[Message], column: str) -> Sequence[Message]:
    """The messages without those after the last learnt one, which cannot change the loss."""
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


def _turns(value: Any, column: str) -> list[Any]:
    value = _parsed(value, column)
    if isinstance(value, dict) and all(isinstance(part, list) for part in value.values()):
        # as `datasets` stores a sequence of structs: a list for each field
        return [dict(zip(value, turn, strict=False)) for turn in zip(*value.values(), strict=False)]
    return value if isinstance(value, list) else []


def _answered(turns: list[Any], column: str) -> list[Message]:
    messages = _messages(turns, column)
    if messages[-1].role != ANSWERS:
        what = f"the last turn is {quoted(_first(turns[-1], 'role', 'from'))}, not 'assistant'"
        raise Fault(what, "end each row with the answer to learn", column=column)
    return messages


def _messages(turns: list[Any], column: str) -> list[Message]:
    return [_message(turn, f"turn {n}", column) for n, turn in enumerate(turns, start=1)]


def _message(turn: Any, place: str, column: str) -> Message:
    role = _first(turn, "role", "from") if isinstance(turn, dict) else None
    if not isinstance(role, str):
        raise Fault("a turn without a text `role` and `content`", FIX_ROW, column=column)
    name = role.strip().lower()
    if name not in ROLES:
        check_text(role, column)
    place, is_call = f"{place} ({role[:MOST_SHOWN]!r})", name in CALLS
    role, content = ROLES.get(name, role), _first(turn, "content", "value")
    text = None if is_call else _text(content, place, column)
    calls = content if is_call else turn.get("function_call")
    extra = {name: v for name, v in turn.items() if v is not None and name not in READ}
    extra = _clean(extra, column) if extra else extra
    if calls is not None:
        extra["tool_calls"] = _calls(calls, place, column)
    elif "tool_calls" in extra:
        extra["tool_calls"] = _clean(_parsed(extra["tool_calls"], column), column)
        if not extra["tool_calls"]:  # an answer without calls may have an empty list of them
            del extra["tool_calls"]
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
                what = f"{place} has a part of type {quoted(part.get('type'))}: only text is learnt"
                raise Fault(what, FIX_ROW, column=column)
            part = part["text"]
        if part is not None or isinstance(content, list):
            check_text(part, column, place)
            texts.append(part)
    return None if content is None else "".join(texts)


def _is_learnt(turn: Mapping[str, Any], role: str, place: str, column: str) -> bool:
    """Whether the loss counts it; raises Fault for a mask that cannot be followed."""
    learnt = role == ANSWERS
    for name in MASKS:
        if (mask := turn.get(name)) is None:
            continue
        if mask not in (0, 1):
            what = f"{place} has {name} {quoted(mask)}: it can be 0 or 1 alone"
            raise Fault(what, FIX_ROW, column=column)
        if mask and role != ANSWERS and name != "weight":
            what = f"{place} has {name} {quoted(mask)}: answers alone can be learnt"
            raise Fault(what, FIX_ROW, column=column)
        learnt = learnt and bool(mask)
    if turn.get("train_detail"):
        what = f"{place} has train_detail: an answer is learnt as a whole, or not"
        raise Fault(what, FIX_ROW, column=column)
    if unclear := next((name for name in UNCLEAR if turn.get(name) is not None), None):
        what = f"{place} has {unclear} {quoted(turn[unclear])}, which data sets use in several ways"
        raise Fault(what, "give it weight 0 or 1 in its place", column=column)
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
    except TooLarge as error:
        raise Fault(f"it {error}", SPLIT, column=column) from error
    except DuplicateKey as error:
        what = f"it has the key {shown(error.key)} twice in an object"
        raise Fault(what, "keep one", column=column) from error


def _clean(value: Any, column: str) -> Any:
    """Without null fields, which columns of structs add; raises Fault for half a character."""
    match value:
        case dict():
            for name in value:
                check_text(name, column)
            return {name: _clean(v, column) for name, v in value.items() if v is not None}
        case list():
            return [_clean(item, column) for item in value]
        case str():
            check_text(value, column)
    return value
