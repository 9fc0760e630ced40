"""Renders a conversation with the model's chat template, and finds the assistant's text in it.

An answer's text is found by prefix: the text through that turn begins with the text before it. If a
template rewrites earlier turns (Qwen3's drops their thinking), only the last answer counts in the loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from trainer.reading.row import Row


@dataclass(frozen=True, slots=True)
class Rendered:
    """One row as text."""

    source: str
    """Everything before the last answer, with the words that open it."""
    target: str
    """The last answer, and the template's end of turn."""
    loss_spans: tuple[tuple[int, int], ...] = ()
    """The characters of the source that are earlier answers, with their ends of turn."""
    is_last_only: bool = False
    """Whether there are earlier answers, and the template rewrites them."""


def render(tokenizer: Any, row: Row) -> Rendered:
    """The row by the tokenizer's template; raises TemplateError where that refuses the turns."""
    source = _text(tokenizer, row.turns, opened=True)
    whole = _text(tokenizer, (*row.turns, ("assistant", row.response)), opened=False)
    target = row.response
    if whole.startswith(source):
        target = _said(whole[len(source) :], row.response)
    spans = []
    for number, (role, content) in enumerate(row.turns):
        if role != "assistant":
            continue
        span = _span(tokenizer, row.turns[: number + 1], content, source)
        if span is None:
            return Rendered(source, target, is_last_only=True)
        spans.append(span)
    return Rendered(source, target, tuple(spans))


def _span(
    tokenizer: Any, turns: Sequence[tuple[str, str]], content: str, source: str
) -> tuple[int, int] | None:
    """The span of the last of the turns in the source; None if the template rewrote it."""
    if len(turns) == 1:  # the assistant speaks first: no text can be before it
        return None
    try:
        before = _text(tokenizer, turns[:-1], opened=True)
        through = _text(tokenizer, turns, opened=False)
    except TemplateError:
        return None
    if not (through.startswith(before) and source.startswith(through)):
        return None
    return len(before), len(before) + len(_said(through[len(before) :], content))


def _said(written: str, content: str) -> str:
    """What the model says in a turn: through the end-of-turn token, without the line break after it.

    In a template without such a token the line break ends the turn.
    """
    bare = content.strip()
    ends = written.rfind(bare) + len(bare) if bare else 0
    said = written.rstrip()
    return said if len(said) > ends else written


def _text(tokenizer: Any, turns: Sequence[tuple[str, str]], *, opened: bool) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    text: str = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=opened
    )
    return text
