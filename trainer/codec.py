"""From rows to token ids and how they become tensors' rows: one codec for each kind of model.

Seq2seq: source = prompt, end-of-sequence; target = response, end-of-sequence. Causal: the source is the
prompt (by the tokenizer's chat template where it has one), the target the response and the end;
the model reads both, the loss counts the target alone.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from autotune.errors import ModelError
from trainer.rows import Row


class Codec:
    """Encodes rows for one tokenizer and kind of model."""

    def __init__(self, tokenizer: Any, *, is_causal: bool) -> None:
        self.tokenizer = tokenizer
        self.is_causal = is_causal
        if tokenizer.eos_token_id is None:
            raise ModelError("the model's tokenizer has no end-of-sequence token; set eos_token")
        self.eos: int = tokenizer.eos_token_id
        self.pad: int = self.eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.templated = is_causal and bool(getattr(tokenizer, "chat_template", None))

    @property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        """The smallest type that holds every token id."""
        return np.uint16 if len(self.tokenizer) <= 1 << 16 else np.uint32

    @property
    def identity(self) -> str:
        """A hash of everything that encoding depends on."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        text = backend.to_str() if backend is not None else repr(sorted(self.tokenizer.get_vocab()))
        parts = (
            text,
            str(self.is_causal),
            str(getattr(self.tokenizer, "chat_template", None)),
            str(self.eos),
        )
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def encode(self, rows: Sequence[Row]) -> list[tuple[list[int], list[int]]]:
        """(source, target) of each row, untruncated."""
        sources = self._ids([self._source_text(row) for row in rows])
        targets = self._ids([row.response for row in rows])
        if self.is_causal:  # the first token of a target is predicted from something
            start = self.tokenizer.bos_token_id
            sources = [s or [self.eos if start is None else start] for s in sources]
        else:
            sources = [[*s, self.eos] for s in sources]
        return [(s, [*t, self.eos]) for s, t in zip(sources, targets, strict=True)]

    def fit_source(self, ids: list[int], longest: int) -> list[int]:
        """At most that many tokens; a seq2seq source keeps its end, a causal prompt its last part."""
        if len(ids) <= longest:
            return ids
        return ids[-longest:] if self.is_causal else [*ids[: longest - 1], self.eos]

    def fit_target(self, ids: list[int], longest: int) -> list[int]:
        """At most that many tokens; a target that is cut off has no end to learn."""
        return ids[:longest]

    def _source_text(self, row: Row) -> str:
        if not self.templated:
            return row.prompt
        turns = [{"role": role, "content": content} for role, content in row.turns]
        text: str = self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        return text

    def _ids(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, truncation=False)[
            "input_ids"
        ]
        return ids
