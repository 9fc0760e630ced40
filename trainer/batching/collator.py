"""Micro-batches as tensors, padded to their own longest sequence.

Each label has the position of the logits that predict it, so the loss needs no shift.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autotune.errors import ModelError
from trainer.data.encoder import Encoder
from trainer.data.token_store import TokenStore

IGNORED = -100
"""The label of a position that the loss does not count."""

RowNumbers = Sequence[int] | npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch on the CPU."""

    inputs: dict[str, Tensor]
    """Keyword arguments of the model's forward, each (batch, seq)."""
    labels: Tensor
    """(batch, seq of the logits)"""
    samples: int
    tokens: int
    """Source and target tokens, padding not counted."""
    target_tokens: int
    """Tokens that the loss counts."""
    area: int
    """Source and target tokens, padding counted."""


class Collator:
    """Builds micro-batches from rows of a store."""

    def __init__(self, store: TokenStore, encoder: Encoder, decoder_start: int | None) -> None:
        self.store = store
        self.encoder = encoder
        self._is_causal = encoder.is_causal
        self._pad = encoder.pad
        if decoder_start is None and not encoder.is_causal:
            raise ModelError(
                "the model's config.json has no decoder_start_token_id, which its decoder begins "
                "with",
                "set it there (T5: the id of the padding token, BART: of the end of sequence)",
            )
        self._decoder_start = decoder_start

    def __getstate__(self) -> dict[str, Any]:
        """Without the encoder: a loader process does not need its tokenizer."""
        return {name: value for name, value in self.__dict__.items() if name != "encoder"}

    def batch(self, rows: RowNumbers) -> Batch:
        """The micro-batch of those rows."""
        return self._build(rows, rows)

    def lengths(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Tokens of each side that is padded apart: (rows, source and target), or (rows, both as one)."""
        sides = np.stack([self.store.source_lengths(rows), self.store.target_lengths(rows)], axis=1)
        return sides.sum(1, keepdims=True) if self._is_causal else sides

    def target_tokens(self, rows: npt.NDArray[np.int64]) -> int:
        """The number of tokens that the loss of those rows counts; reads no tokens."""
        return int(self.store.loss_mask_lengths(rows).sum())

    def worst_case_batch(self, size: int) -> Batch:
        """The largest micro-batch of that many sequences that the data can make.

        Seq2seq pads sources and targets apart: the longest of each. A causal model reads both as one
        sequence: the longest of those. The last position is masked: without any padding transformers
        drops the mask, and attention then takes less memory (one position bias of T5 for all rows).
        """
        longest = self._longest_rows()
        batch = self._build([longest[0][0]] * size, [longest[-1][0]] * size)
        mask = batch.inputs["attention_mask"]  # (batch, source or both)
        if mask.shape[1] > 1:
            mask[-1, -1] = 0
        return batch

    def longest(self) -> tuple[int, ...]:
        """Tokens of the longest on each side that is padded apart: source and target, or both as one."""
        return tuple(tokens for _, tokens in self._longest_rows())

    def one_sided(self, size: int, side: int) -> Batch | None:
        """`size` sequences, longest on one side and one token on the other; None for a causal model.

        Use only its shape: its numbers of tokens are those of the worst-case batch.
        """
        if self._is_causal:
            return None
        batch = self.worst_case_batch(size)
        short = ("decoder_input_ids",) if side == 0 else ("input_ids", "attention_mask")
        inputs = {k: v[:, :1] if k in short else v for k, v in batch.inputs.items()}
        labels = batch.labels[:, :1] if side == 0 else batch.labels
        return replace(batch, inputs=inputs, labels=labels)

    def _longest_rows(self) -> list[list[int]]:
        """(row, tokens) of the longest on each side that is padded apart."""
        stats = self.store.stats
        return (
            [stats.longest_both]
            if self._is_causal
            else [stats.longest_source, stats.longest_target]
        )

    def _build(
        self,
        source_rows: RowNumbers,
        target_rows: RowNumbers,
    ) -> Batch:
        sources = [self.store.source(row) for row in source_rows]
        targets = [self.store.target(row) for row in target_rows]
        if self._is_causal:
            both = [np.concatenate(pair) for pair in zip(sources, targets, strict=True)]
            loss_masks = [self.store.loss_mask(row) for row in source_rows]
            nexts = [_nexts(*parts) for parts in zip(sources, loss_masks, targets, strict=True)]
            inputs = padded_inputs(both, self._pad)  # (batch, source + target)
            labels = _padded(nexts, IGNORED)
            area = labels.numel()
        else:
            inputs = padded_inputs(sources, self._pad)  # (batch, source)
            labels = _padded(targets, IGNORED)  # (batch, target)
            area = inputs["input_ids"].numel() + labels.numel()
            inputs["decoder_input_ids"] = self._shift_right(labels)
        return Batch(
            inputs,
            labels,
            samples=len(sources),
            tokens=sum(map(len, sources)) + sum(map(len, targets)),
            target_tokens=int((labels != IGNORED).sum()),
            area=area,
        )

    def _shift_right(self, labels: Tensor) -> Tensor:
        """What a decoder reads to predict the labels: a start token, then all but the last."""
        assert self._decoder_start is not None
        shifted = labels.new_full(labels.shape, self._decoder_start)
        shifted[:, 1:] = labels[:, :-1]
        return shifted.masked_fill_(shifted == IGNORED, self._pad)


def _nexts(
    source: npt.NDArray[Any], loss_mask: npt.NDArray[np.bool_], target: npt.NDArray[Any]
) -> npt.NDArray[np.int64]:
    """The label of each position of a causal sequence: the next token if the loss counts it."""
    following = np.where(loss_mask, source.astype(np.int64), IGNORED)[1:]
    return np.concatenate([following, target.astype(np.int64), [IGNORED]])


def padded_inputs(
    sequences: Sequence[npt.NDArray[Any]], pad: int, *, left: bool = False
) -> dict[str, Tensor]:
    """The ids and their mask, each (batch, longest); padded on the right, or on the left."""
    ones = [np.ones(len(sequence), dtype=np.int64) for sequence in sequences]
    ids, mask = _padded(sequences, pad, left=left), _padded(ones, 0, left=left)
    return {"input_ids": ids, "attention_mask": mask}


def _padded(sequences: Sequence[npt.NDArray[Any]], value: int, *, left: bool = False) -> Tensor:
    longest = max(map(len, sequences))
    padded = np.full((len(sequences), longest), value, dtype=np.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        start = longest - len(sequence) if left else 0
        row[start : start + len(sequence)] = sequence
    return torch.from_numpy(padded)
