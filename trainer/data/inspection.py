"""Rows as they will be trained, for `chatlm data`: by the encoder and the store of training."""

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autotune.errors import UsageError
from trainer.data.encoder import Encoder
from trainer.data.token_store import TokenStore
from trainer.reading.row import Row

BINS = 10
"""Bars of a histogram, at most."""
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
LONGEST_CHARACTER = 8
"""Tokens of bytes that make one character, at most."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a shown row."""

    id: int
    text: str
    """Empty if it is the beginning of a character that the next token completes."""
    is_learnt: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRow:
    """One row in tokens, within the limits."""

    number: int
    """Counted from 1 over all files."""
    source: tuple[Token, ...]
    target: tuple[Token, ...]
    """What the model writes; a causal model reads it after the source."""
    cut_source: int
    """Tokens that the limits cut: from a causal source's beginning, else from the end."""
    cut_target: int
    is_last_only: bool
    """Whether earlier answers are not learnt, because the template rewrites them."""
    is_altered: bool
    """Whether the template leaves out a part of the answer, or a question or system message."""
    spelled: str | None
    """A special token that the text spells."""

    @property
    def learnt(self) -> int:
        return sum(token.is_learnt for token in (*self.source, *self.target))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """The lengths of one side over all rows, in tokens."""

    side: str
    """`source`, `target`, or `both`."""
    least: int
    median: int
    p95: int
    p99: int
    most: int
    total: int
    limit: int
    bars: tuple[tuple[int, int, int], ...]
    """(shortest, longest, rows) of each bar of the histogram."""


def lengths(store: TokenStore, *, max_source: int, max_target: int) -> tuple[Lengths, ...]:
    """The lengths of sources, targets, and both together."""
    ends = np.diff(store.offsets)  # (2 · rows,)
    source, target = ends[::2], ends[1::2]
    return (
        _lengths("source", source, max_source),
        _lengths("target", target, max_target),
        _lengths("both", source + target, max_source + max_target),
    )


def _lengths(side: str, each: npt.NDArray[np.int64], limit: int) -> Lengths:
    median, p95, p99 = np.percentile(each, (50, 95, 99), method="higher").tolist()
    most = int(each.max())
    width = 1
    while width * BINS < most:
        width *= 2
    counts = np.bincount((np.maximum(each, 1) - 1) // width)
    bars = tuple((i * width + 1, (i + 1) * width, n) for i, n in enumerate(counts.tolist()))
    return Lengths(
        side=side, least=int(each.min()), median=median, p95=p95, p99=p99, most=most,
        total=int(each.sum()), limit=limit, bars=bars,
    )  # fmt: skip


def pick(rows: Iterator[Row], numbers: Sequence[int]) -> list[tuple[int, Row]]:
    """The rows of those numbers, counted from 1, in order.

    Raises:
        UsageError: there is no such row.
    """
    wanted, last = set(numbers), max(numbers)
    read = enumerate(itertools.islice(rows, min(last, sys.maxsize)), start=1)
    found = [(number, row) for number, row in read if number in wanted]
    if not found or found[-1][0] < last:
        raise UsageError(f"there is no row {last}", "give --row a number of a row, counted from 1")
    return found


def show(encoder: Encoder, number: int, row: Row, *, max_source: int, max_target: int) -> ShownRow:
    """The row as the store has it."""
    (encoded,) = encoder.encode([row])
    source, target = encoder.fit(encoded, max_source=max_source, max_target=max_target)
    spans = encoded.loss_spans_in_last(len(source))
    is_learnt = [any(a <= place < b for a, b in spans) for place in range(len(source))]
    is_learnt += [True] * len(target)
    texts = [
        text
        for ids in ([source + target] if encoder.is_causal else [source, target])
        for text in token_texts(encoder.tokenizer, ids)
    ]
    tokens = tuple(map(Token, source + target, texts, is_learnt))
    return ShownRow(
        number=number,
        source=tokens[: len(source)],
        target=tokens[len(source) :],
        cut_source=len(encoded.source) - len(source),
        cut_target=len(encoded.target) - len(target),
        is_last_only=encoded.is_last_only,
        is_altered=encoded.is_altered,
        spelled=encoded.spelled,
    )


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token as it stands after those before it; together they are the whole text."""
    texts: list[str] = []
    context = first = 0  # where the character before begins, and this one
    known = ""  # the text of the one before
    for place in range(len(ids)):
        text = tokenizer.decode(ids[context : place + 1], clean_up_tokenization_spaces=False)
        is_whole = len(text) > len(known) and not text.endswith(INCOMPLETE)
        if not is_whole and place - first < LONGEST_CHARACTER and place + 1 < len(ids):
            texts.append("")
            continue
        texts.append(text[len(known) :])
        known = tokenizer.decode(ids[first : place + 1], clean_up_tokenization_spaces=False)
        context, first = first, place + 1
    return texts
