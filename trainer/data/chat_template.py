"""A conversation as the model's chat template writes it, and which of its text the assistant says.

What a template adds for an answer is found by prefix: the text through that turn begins with the
text before it. A template that rewrites earlier turns (Qwen3's leaves out their thinking) says
nothing of them, and only the last answer is learnt. Tokens are `encoder`'s business.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data.readers import Row


class TemplateFails(Exception):
    """The template raised; with its reason."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """One row as text."""

    source: str
    """Everything before the last answer, the words that open it included."""
    target: str
    """The last answer, and the template's end of turn."""
    learnt: tuple[tuple[int, int], ...] = ()
    """The characters of the source that are earlier answers, their ends of turn included."""
    is_last_only: bool = False
    """Whether there are earlier answers, and the template rewrites them."""


def render(tokenizer: Any, row: Row) -> Rendered:
    """The row by the tokenizer's template.

    Raises:
        TemplateFails: it cannot write these turns.
    """
    source = _text(tokenizer, row.turns, opened=True)
    whole = _text(tokenizer, (*row.turns, ("assistant", row.response)), opened=False)
    target = row.response
    if whole.startswith(source):
        target = _said(whole[len(source) :], row.response)
    learnt = []
    for number, (role, content) in enumerate(row.turns):
        if role != "assistant":
            continue
        span = _span(tokenizer, row.turns[: number + 1], content, source)
        if span is None:
            return Rendered(source, target, is_last_only=True)
        learnt.append(span)
    return Rendered(source, target, tuple(learnt))


def _span(
    tokenizer: Any, turns: Sequence[tuple[str, str]], content: str, source: str
) -> tuple[int, int] | None:
    """Where the last of the turns stands in the source; None where it is not there as it was."""
    try:
        before = _text(tokenizer, turns[:-1], opened=True)
        through = _text(tokenizer, turns, opened=False)
    except TemplateFails:  # as of no turns at all, where the assistant speaks first
        return None
    if not (through.startswith(before) and source.startswith(through)):
        return None
    return len(before), len(before) + len(_said(through[len(before) :], content))


def _said(written: str, content: str) -> str:
    """What the model is to say of a turn: up to the end-of-turn token, not the line break behind it.

    Where a template has no such token, the line break is what ends the turn.
    """
    bare = content.strip()
    ends = written.rfind(bare) + len(bare) if bare else 0
    said = written.rstrip()
    return said if len(said) > ends else written


def _text(tokenizer: Any, turns: Sequence[tuple[str, str]], *, opened: bool) -> str:
    from jinja2 import TemplateError

    messages = [{"role": role, "content": content} for role, content in turns]
    if not messages:
        raise TemplateFails("it has no turns")
    try:
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=opened
        )
    except TemplateError as error:
        raise TemplateFails(str(error)) from error
    return text
