"""Renders a conversation with the model's chat template, and finds the answers in its text.

The text is the template's own, of the whole conversation. An answer is what the template adds after the
words that open an answer; its end of turn belongs to it.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from autotune.errors import ModelError
from trainer.reading.conversations import REASONING
from trainer.reading.row import Message, Row

Span = tuple[int, int]
"""The first token or character, and the first one after the last."""
SAME = 4
"""Characters of an answer that are looked for."""

Messages = Sequence[Mapping[str, Any]]
Write = Callable[..., str]
"""The template: messages, and `opened`, whether words follow that open an answer."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """One row as text."""

    text: str
    """The whole conversation; it ends with the last answer."""
    begin: int
    """The characters before the last answer."""
    content: Span
    """The characters of that answer's content; empty, at `begin`, where the template rewrites it."""
    loss_spans: tuple[Span, ...] = ()
    """The characters of the earlier answers that the loss counts, with their ends of turn."""
    is_last_only: bool = False
    """Whether the template rewrites an earlier answer that the loss should count."""
    is_altered: bool = False
    """Whether the template leaves out a part of the last answer, or a question or system message."""


def check_template(tokenizer: Any) -> None:
    """Raises ModelError where the template can write no row at all, so that no row is to blame."""
    templates = tokenizer.chat_template
    if isinstance(templates, dict) and "default" not in templates:
        raise ModelError(
            f"the model has several chat templates ({', '.join(templates)}), and none is called default",
            "give the one to train with that name, in tokenizer_config.json or as chat_template.jinja",
        )
    try:
        _text(tokenizer, [{"role": "user", "content": "a"}], (), opened=True)
    except TemplateSyntaxError as error:
        raise ModelError(
            f"the model's chat template is damaged: line {error.lineno}: {error.message}",
            "copy the model's folder again, or correct the template",
        ) from error
    except TemplateError:  # it wants other turns
        pass


def render(tokenizer: Any, row: Row) -> Rendered:
    """The row by the tokenizer's template.

    Earlier answers are learnt if the template writes them in full; Qwen3's leaves out earlier thinking. An
    answer before any other message follows from nothing, and is not learnt.

    Raises:
        TemplateError: the template refuses the turns, or does not write their tools.
    """

    def write(messages: Messages, *, opened: bool = False, tools: Sequence[Any] = row.tools) -> str:
        return _text(tokenizer, messages, tools, opened=opened)

    messages = _taken(write, [message.as_dict() for message in row.messages])
    text = write(messages)
    _check_tools(write, messages, text, has_tools=bool(row.tools))
    begin = _begin(write, messages, text)
    bare = row.response.strip()
    first = text.find(bare, begin) if bare else -1
    content = (begin, begin) if first < 0 else (first, first + len(bare))
    spans = [
        _earlier(write, messages[: number + 1], text)
        for number, message in enumerate(row.messages[:-1])
        if message.is_learnt and number > 0
    ]
    known = tuple(span for span in spans if span is not None)
    return Rendered(
        text, begin, content,
        loss_spans=known if len(known) == len(spans) else (),
        is_last_only=len(known) < len(spans),
        is_altered=_is_altered(row.messages[-1], text, begin) or _lacks_question(row, text),
    )  # fmt: skip


def _begin(write: Write, messages: Messages, text: str) -> int:
    """Where the last of the messages, an answer, begins in the text."""
    before = messages[:-1]
    if not before:
        return 0
    opened = write(before, opened=True)
    if text.startswith(opened):
        return len(opened)
    # The words that open an answer are not all written into a conversation (DeepSeek-R1: `<think>`), or there
    # are none (BlenderBot). What follows may begin as they do, like `<b>`; but an answer begins no later than
    # where another content makes another text.
    begin = _common(opened, text)
    if not (bare := _bare(messages[-1])):
        return begin
    other = {**messages[-1], "content": "1" if bare.startswith("0") else "0"}
    answer = _common(write([*before, other]), text)
    # A template may write an open question in another way (Mistral's: the system message is in a last question
    # alone). Then the question is no part of the answer.
    return answer if begin < _end_of_question(write, messages) else min(begin, answer)


def _end_of_question(write: Write, messages: Messages) -> int:
    """Where the content of the message before the last ends in their text; 0 if it has none."""
    *earlier, question, answer = messages
    if not (bare := _bare(question)):
        return 0
    other = {**question, "content": "1" if bare.endswith("0") else "0"}
    text = write(messages)
    return len(text) - _common(write([*earlier, other, answer])[::-1], text[::-1])


def _earlier(write: Write, messages: Messages, text: str) -> Span | None:
    """The span of the last of the messages, an answer, in the text; None if the template rewrote it."""
    try:
        begin = _begin(write, messages, text)
        through = write(messages)
    except TemplateError:
        return None
    if text.startswith(through):
        return begin, len(through)
    # Another frame around the same answer: Qwen3 writes an empty `<think>` before the last alone, Phi-3 ends
    # a conversation with `<|endoftext|>`. What is learnt is what both texts have.
    message = messages[-1]
    if not message.keys().isdisjoint(REASONING):
        return None
    begins_alike = re.finditer(re.escape(text[begin : begin + SAME]), through)
    rests = (through[match.start() :] for match in begins_alike if match.start() > begin)
    whole = next((rest for rest in rests if text.startswith(rest, begin)), None)
    end = begin + len(whole) if whole is not None else _common(through, text)
    said = [_bare(message), *(call["function"].get("name", "") for call in _calls([message]))]
    is_whole = end > begin and all(part in text[begin:end] for part in said)
    return (begin, end) if is_whole else None


def _common(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _bare(message: Mapping[str, Any]) -> str:
    return (message.get("content") or "").strip()


def _is_altered(message: Message, text: str, begin: int) -> bool:
    """Whether a part of an answer is not in the text; spaces and line breaks do not count."""
    extra = (message.extra.get(name) for name in REASONING)
    parts = [message.text, *(part for part in extra if isinstance(part, str))]
    if all(part.strip() in text[begin:] for part in parts):
        return False
    squeezed = "".join(text.split())
    return not all("".join(part.split()) in squeezed for part in parts)


def _lacks_question(row: Row, text: str) -> bool:
    """Whether a question or a system message is not in the text; spaces and line breaks do not count."""
    said = [message.text for message in row.messages if message.role in ("system", "user")]
    if all(each.strip() in text for each in said):
        return False
    squeezed = "".join(text.split())
    return not all("".join(each.split()) in squeezed for each in said)


def _taken(write: Write, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages as the template takes them: without null content, or with an empty one in its place."""
    taken = _with_arguments(write, messages)
    if all("content" in message for message in messages):
        return taken
    try:
        write(taken)
    except TemplateError:
        return _with_arguments(write, [{"content": "", **message} for message in messages])
    return taken


def _with_arguments(write: Write, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, with the arguments of tool calls as the template takes them: text or objects.

    OpenAI's form is JSON text. Many templates write it as JSON once more, with its quotes escaped.
    """
    texts = [
        call["function"]["arguments"]
        for call in _calls(messages)
        if isinstance(call["function"].get("arguments"), str)
    ]
    if not texts:
        return messages
    try:
        text = write(messages)
    except TemplateError:  # it reads them as objects
        pass
    else:
        if not any(json.dumps(each, ensure_ascii=False) in text for each in texts):
            return messages
    return [
        {**message, "tool_calls": [_parsed(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _parsed(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    try:
        return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
    except (TypeError, ValueError, KeyError):  # objects already, or no JSON
        return dict(call)


def _calls(messages: Messages) -> Iterator[Mapping[str, Any]]:
    for message in messages:
        for call in message.get("tool_calls") or ():
            if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
                yield call


def _check_tools(write: Write, messages: Messages, text: str, *, has_tools: bool) -> None:
    """Raises TemplateError where the text is the same without the tools, or without their calls."""
    if has_tools and write(messages, tools=()) == text:
        raise TemplateError("it does not write `tools`")
    without = [{k: v for k, v in message.items() if k != "tool_calls"} for message in messages]
    if without != list(messages) and write(without) == text:
        raise TemplateError("it does not write `tool_calls`")


def _text(tokenizer: Any, messages: Messages, tools: Sequence[Any], *, opened: bool) -> str:
    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tools=list(tools) or None, tokenize=False, add_generation_prompt=opened
        )
    except (TypeError, ValueError, LookupError, AttributeError) as error:  # of its expressions
        raise TemplateError(str(error)) from error
    return text
