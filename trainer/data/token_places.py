"""The tokens of a rendered conversation, and which of them its characters became."""

from bisect import bisect_left, bisect_right
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

    A token over the border of prompt and answer belongs to the answer if it has more of it than spaces.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [_by_prefix(tokenizer, row) for row in rows]
    encodings = backend.encode_batch([row.text for row in rows], add_special_tokens=False)
    return [_by_offsets(row, each) for row, each in zip(rows, encodings, strict=True)]


def _by_offsets(row: Rendered, encoding: Any) -> Placed:
    ids: list[int] = encoding.ids
    # a byte-level tokenizer may trim spaces off its offsets (GPT-NeoX's): a token of spaces is empty, at its end
    starts, ends = zip(*encoding.offsets, strict=True) if ids else ((), ())

    def begins(place: int) -> int:
        """The token that an answer from this character on begins with."""
        inked = next((n for n in range(place, len(row.text)) if not row.text[n].isspace()), place)
        token = bisect_right(ends, place)  # the first one that ends after it
        is_over = token < len(ids) and (ends[token - 1] if token else 0) < place
        return token + 1 if is_over and ends[token] <= inked else token

    spans = tuple((begins(first), bisect_right(ends, last)) for first, last in row.loss_spans)
    tail = bisect_left(starts, row.content[1])
    return Placed(ids, begins(row.begin), tail, spans)


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
        # a span may end within the text of a special token: as far as the tokens are the same
        pairs = enumerate(zip(whole, last, strict=False))
        end = next((place for place, (one, other) in pairs if one != other), len(last))
        if whole[: len(first)] != first or end <= len(first):
            return Placed(whole, len(before), len(before), (), is_complete=False)
        spans.append((len(first), end))
    return Placed(whole, len(before), len(before), tuple(spans))
