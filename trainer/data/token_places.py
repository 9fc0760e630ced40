"""The tokens of a rendered conversation, and which of them its characters became."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data.chat_template import Rendered, Span


@dataclass(frozen=True, slots=True)
class Placed:
    """A conversation in tokens."""

    ids: list[int]
    begin: int
    """The first token of the last answer."""
    tail: int
    """The first token after the content of that answer."""
    loss_spans: tuple[Span, ...]
    is_complete: bool = True
    """Whether every span of the text was found in the tokens."""


def place(tokenizer: Any, rows: Sequence[Rendered]) -> list[Placed]:
    """Each row tokenised as a whole, as `apply_chat_template` does.

    A token over the border of prompt and answer belongs to the answer if it has some of its content.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [_by_prefix(tokenizer, row) for row in rows]
    encodings = backend.encode_batch([row.text for row in rows], add_special_tokens=False)
    return [_by_offsets(row, each) for row, each in zip(rows, encodings, strict=True)]


def _by_offsets(row: Rendered, encoding: Any) -> Placed:
    ids: list[int] = encoding.ids

    def token_at(place: int, *, is_over: bool) -> int:
        """The token of that character, or the next if it begins before it and `is_over` is not set."""
        for character in range(place, len(row.text)):
            token: int | None = encoding.char_to_token(character)  # None: a space that no token has
            if token is not None:
                begins = encoding.token_to_chars(token)[0]
                return token if is_over or begins >= place else token + 1
        return len(ids)

    begin = token_at(row.begin, is_over=True)
    if begin < len(ids) and encoding.token_to_chars(begin)[1] <= row.content[0]:
        begin = token_at(row.begin, is_over=False)
    spans = (
        (token_at(first, is_over=False), token_at(last, is_over=True))
        for first, last in row.loss_spans
    )
    return Placed(ids, begin, token_at(row.content[1], is_over=False), tuple(spans))


def _by_prefix(tokenizer: Any, row: Rendered) -> Placed:
    """For a tokenizer without offsets: the tokens of a prefix begin the tokens of the whole."""

    def tokens(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    whole, before = tokens(row.text), tokens(row.text[: row.begin])
    if whole[: len(before)] != before:
        whole = before + tokens(row.text[row.begin :])
    spans: list[Span] = []
    for span in row.loss_spans:
        first, last = (tokens(row.text[:end]) for end in span)
        if whole[: len(last)] != last or last[: len(first)] != first:
            return Placed(whole, len(before), len(before), (), is_complete=False)
        spans.append((len(first), len(last)))
    return Placed(whole, len(before), len(before), tuple(spans))
