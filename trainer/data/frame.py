"""What a tokenizer puts around a text: `<s> … </s>`, a language code, nothing."""

from dataclasses import dataclass
from typing import Any

from autotune.errors import ModelError, first_line

TEXT = "1 a"
"""Any text that every tokenizer knows."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The token ids before and after a text."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def around(self, ids: list[int]) -> list[int]:
        return [*self.before, *ids, *self.after]

    def fit(self, framed: list[int], longest: int) -> list[int]:
        """At most `longest` of the framed ids: the first ones, and what stands after the text."""
        if len(framed) <= longest:
            return framed
        return [*framed[: max(0, longest - len(self.after))], *self.after[:longest]]


def read_frame(tokenizer: Any, *, is_target: bool, end: int | None) -> Frame:
    """The frame of a source or a target, with `end` after the text if the tokenizer puts no such token.

    Raises:
        ModelError: the tokenizer does not take targets, or fails on them.
    """
    argument = {"text_target" if is_target else "text": TEXT}
    try:
        framed: list[int] = tokenizer(**argument)["input_ids"]
        bare: list[int] = tokenizer(**argument, add_special_tokens=False)["input_ids"]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        what = "targets (text_target)" if is_target else "text"
        raise ModelError(
            f"the model's tokenizer, {type(tokenizer).__name__}, fails on {what}: {first_line(error)}",
            "set its languages (src_lang, tgt_lang) in tokenizer_config.json, if it has some, or take "
            "another model",
        ) from error
    before, after = _split(framed, bare)
    if end is not None and end not in after:
        after = (*after, end)
    return Frame(before, after)


def _split(framed: list[int], bare: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What is before and after the bare ids; nothing where they are not found."""
    for start in range(len(framed) - len(bare) + 1):
        if framed[start : start + len(bare)] == bare:
            return tuple(framed[:start]), tuple(framed[start + len(bare) :])
    return (), ()
