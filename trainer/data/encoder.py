"""From rows to token ids: one encoder for each kind of model.

Source: all before the last answer; target: that answer and its end. A seq2seq source has an end,
too. A causal model reads both as one, by the tokenizer's chat template if there is one. The loss
counts the target, and in a causal source the earlier answers and their ends (`loss_spans`).
"""

import hashlib
import itertools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import TemplateError

from autotune.errors import DataError, ModelError
from trainer.data.chat_template import Rendered, render
from trainer.reading.row import Row

Span = tuple[int, int]
"""The first token or character, and the first one after the last."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row, untruncated."""

    source: list[int]
    target: list[int]
    loss_spans: tuple[Span, ...] = ()
    """The parts of the source that the loss counts as well."""
    is_last_only: bool = False
    """Whether the loss counts the last answer alone, though there are earlier ones."""

    def loss_spans_in_last(self, length: int) -> list[Span]:
        """`loss_spans` within the last `length` tokens, without the first one, which nothing predicts."""
        gone = len(self.source) - length
        spans = [(max(1, first - gone), last - gone) for first, last in self.loss_spans]
        return [(first, last) for first, last in spans if first < last]


class Encoder:
    """Encodes rows for one tokenizer and kind of model."""

    def __init__(self, tokenizer: Any, *, is_causal: bool) -> None:
        self.tokenizer = tokenizer
        self.is_causal = is_causal
        if tokenizer.eos_token_id is None:
            raise ModelError("the model's tokenizer has no end-of-sequence token", "set eos_token")
        self.eos: int = tokenizer.eos_token_id
        self.pad: int = self.eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.templated = is_causal and bool(getattr(tokenizer, "chat_template", None))
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self._opening = self._find_opening()

    @property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        """The smallest type that holds every token id."""
        return np.uint16 if len(self.tokenizer) <= 1 << 16 else np.uint32

    @property
    def tokenizer_hash(self) -> str:
        """A hash of everything that encoding depends on."""
        backend = self._backend
        text = backend.to_str() if backend is not None else repr(sorted(self.tokenizer.get_vocab()))
        template = getattr(self.tokenizer, "chat_template", None)
        parts = (text, self.is_causal, template, self.eos, self._opening)
        return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """Each row, untruncated; raises DataError where the chat template refuses one."""
        if self._backend is not None:  # the tokenizer's file may ask for truncation and padding
            self._backend.no_truncation()
            self._backend.no_padding()
        if not self.is_causal:
            return self._encode_pairs(rows)
        return self._encode_templated(rows) if self.templated else self._encode_turns(rows)

    def fit_source(self, ids: list[int], longest: int) -> list[int]:
        """At most `longest` tokens: the first ones and end-of-sequence, or a causal source's last ones.

        The earliest turns of a causal source are cut even where the loss would have counted them.
        """
        if len(ids) <= longest:
            return ids
        return ids[-longest:] if self.is_causal else [*ids[: longest - 1], self.eos]

    def _encode_pairs(self, rows: Sequence[Row]) -> list[Encoded]:
        sources = self._ids([row.prompt for row in rows])
        targets = self._ids([row.response for row in rows])
        return [
            Encoded([*self._opening, *s, self.eos], [*self._opening, *t, self.eos])
            for s, t in zip(sources, targets, strict=True)
        ]

    def _encode_turns(self, rows: Sequence[Row]) -> list[Encoded]:
        """Without a template: the turns end to end, and the end of sequence after each answer."""
        pieces = [list(_joined(row.turns)) for row in rows]
        flat = iter(self._ids([text for parts in pieces for _, text in parts]))
        targets = self._ids([row.response for row in rows])
        encoded = []
        for parts, target in zip(pieces, targets, strict=True):
            source, spans = list(self._opening), []
            for (is_answer, _), ids in zip(parts, flat, strict=False):
                if is_answer:
                    spans.append((len(source), len(source) + len(ids) + 1))
                    source += [*ids, self.eos]
                else:
                    source += ids
            encoded.append(Encoded(self._begun(source), [*target, self.eos], tuple(spans)))
        return encoded

    def _encode_templated(self, rows: Sequence[Row]) -> list[Encoded]:
        rendered = [self._render(row) for row in rows]
        sources = self._located(rendered)
        targets = self._ids([each.target for each in rendered])
        return [
            Encoded(
                self._begun(ids),
                target if target[-1:] == [self.eos] else [*target, self.eos],
                spans,
                each.is_last_only or len(spans) < len(each.loss_spans),
            )
            for each, (ids, spans), target in zip(rendered, sources, targets, strict=True)
        ]

    def _render(self, row: Row) -> Rendered:
        try:
            return render(self.tokenizer, row)
        except TemplateError as error:
            beginning = row.prompt.strip().splitlines()[:1] or [""]
            raise DataError(
                "the model's chat template refuses the conversation that begins "
                f"{beginning[0][:40]!r}: {error}",
                "fix the row or drop it",
            ) from error

    def _begun(self, source: list[int]) -> list[int]:
        """The source, or one start token if it is empty: a causal model needs a token before the target."""
        start = self.tokenizer.bos_token_id
        return source or [self.eos if start is None else start]

    def _find_opening(self) -> list[int]:
        """What the tokenizer puts before any text: `<s>` for BART and Llama, nothing for T5 and GPT-2."""
        if self._backend is None:
            return []
        ids: list[int] = self.tokenizer("")["input_ids"]
        return ids[: ids.index(self.eos)] if self.eos in ids else ids

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if self._backend is not None:  # transformers' own call takes twice the time, for its masks
            return [e.ids for e in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, truncation=False)[
            "input_ids"
        ]
        return ids

    def _located(self, rows: list[Rendered]) -> list[tuple[list[int], tuple[Span, ...]]]:
        """Each source's ids, and its loss spans in tokens; no spans without a fast tokenizer."""
        texts = [row.source for row in rows]
        if self._backend is None or not any(row.loss_spans for row in rows):
            return [(ids, ()) for ids in self._ids(texts)]
        found = []
        encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        for encoding, row in zip(encodings, rows, strict=True):
            begins = [first for first, _ in encoding.offsets]
            spans = ((bisect_left(begins, a), bisect_left(begins, b)) for a, b in row.loss_spans)
            found.append((encoding.ids, tuple(spans)))
        return found


def _joined(turns: Sequence[tuple[str, str]]) -> list[tuple[bool, str]]:
    """(whether the assistant says it, text); other roles' turns in a row are joined."""
    pieces: list[tuple[bool, str]] = []
    for is_answer, group in itertools.groupby(turns, lambda turn: turn[0] == "assistant"):
        texts = [text for _, text in group]
        pieces += [(True, text) for text in texts] if is_answer else [(False, "\n".join(texts))]
    return pieces
