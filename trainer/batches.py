"""Micro-batches as tensors, padded to their own longest sequence.

Labels stand where the logits that predict them do, so that the loss shifts nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.codec import Codec
from trainer.store import TokenStore

IGNORED = -100
"""The label of a position that the loss does not count."""


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
    """Those that the loss counts."""
    area: int
    """The same with padding."""


class Collator:
    """Builds micro-batches from rows of a store."""

    def __init__(self, store: TokenStore, codec: Codec, decoder_start: int | None) -> None:
        self.store = store
        self.codec = codec
        self._decoder_start = decoder_start

    def batch(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> Batch:
        """The micro-batch of those rows."""
        return self._build(
            [self.store.source(row) for row in rows], [self.store.target(row) for row in rows]
        )

    def lengths(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Tokens of what is padded apart: (rows, source and target), or (rows, both as one)."""
        sides = np.stack([self.store.source_lengths(rows), self.store.target_lengths(rows)], axis=1)
        return sides.sum(1, keepdims=True) if self.codec.is_causal else sides

    def target_tokens(self, rows: npt.NDArray[np.int64]) -> int:
        """What the loss of those rows counts, without reading them."""
        return int(self.store.target_lengths(rows).sum())

    def worst(self, size: int) -> Batch:
        """The largest micro-batch of that many sequences that the data can make.

        Seq2seq pads sources and targets apart: the longest of each. A causal model reads both as
        one sequence: the longest of those.
        """
        source, target = self.worst_rows()
        return self._build([self.store.source(source)] * size, [self.store.target(target)] * size)

    def longest(self) -> tuple[int, ...]:
        """Tokens of the longest on each side that is padded apart: source and target, or both as one."""
        if self.codec.is_causal:
            return (self.worst(1).area,)
        return self.store.longest()

    def one_sided(self, size: int, side: int) -> Batch | None:
        """That many sequences, longest on one side and one token on the other; None without sides."""
        if self.codec.is_causal:
            return None
        worst = self.worst_rows()
        source, target = self.store.source(worst[0]), self.store.target(worst[1])
        if side == 0:
            target = target[:1]
        else:
            source = source[:1]
        return self._build([source] * size, [target] * size)

    def worst_rows(self) -> tuple[int, int]:
        """The rows that the source and the target of the largest micro-batch are from."""
        every = np.arange(len(self.store))
        sources, targets = self.store.source_lengths(every), self.store.target_lengths(every)
        if self.codec.is_causal:
            row = int((sources + targets).argmax())
            return row, row
        return int(sources.argmax()), int(targets.argmax())

    def _build(
        self, sources: list[npt.NDArray[np.int64]], targets: list[npt.NDArray[np.int64]]
    ) -> Batch:
        tokens = sum(map(len, sources)) + sum(map(len, targets))
        if self.codec.is_causal:
            both = [np.concatenate(pair) for pair in zip(sources, targets, strict=True)]
            nexts = [
                np.concatenate([np.full(len(s) - 1, IGNORED), t.astype(np.int64), [IGNORED]])
                for s, t in zip(sources, targets, strict=True)
            ]
            input_ids = _pad(both, self.codec.pad)  # (batch, source + target)
            inputs = {"input_ids": input_ids, "attention_mask": _mask(both)}
            labels = _pad(nexts, IGNORED)
            area = input_ids.numel()
        else:
            input_ids = _pad(sources, self.codec.pad)  # (batch, source)
            labels = _pad(targets, IGNORED)  # (batch, target)
            inputs = {
                "input_ids": input_ids,
                "attention_mask": _mask(sources),
                "decoder_input_ids": self._shift_right(labels),
            }
            area = input_ids.numel() + labels.numel()
        return Batch(inputs, labels, len(sources), tokens, sum(map(len, targets)), area)

    def _shift_right(self, labels: Tensor) -> Tensor:
        """What a decoder reads to predict the labels: a start token, then all but the last."""
        assert self._decoder_start is not None
        shifted = labels.new_full(labels.shape, self._decoder_start)
        shifted[:, 1:] = labels[:, :-1]
        return shifted.masked_fill_(shifted == IGNORED, self.codec.pad)


def _pad(sequences: Sequence[npt.NDArray[np.int64]], value: int) -> Tensor:
    longest = max(map(len, sequences))
    padded = np.full((len(sequences), longest), value, dtype=np.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return torch.from_numpy(padded)


def _mask(sequences: Sequence[npt.NDArray[np.int64]]) -> Tensor:
    return _pad([np.ones(len(s), dtype=np.int64) for s in sequences], 0)
