"""Checks that a Trainer ran the batches that it was asked to: a size that did not run is no answer.

A loader, a batch sampler or a collator of the user's may make batches of other sizes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from autotune.errors import UsageError
from autotune.integrations.longest_rows import tensors_of

HINT = (
    "let the Trainer make the train dataloader with per_device_train_batch_size, or tune your own step "
    "by find_micro_batch"
)


class BatchCheck:
    """Counts the rows that the collator is given and the sequences that the model's forward pass sees."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate
        self._rows: list[int] = []
        self._sequences: list[int] = []

    def collate(self, rows: list[Any]) -> Any:
        """The user's collator."""
        self._rows.append(len(rows))
        return self._collate(rows)

    @contextmanager
    def watching(self, model: torch.nn.Module, size: int) -> Iterator[None]:
        """Raises UsageError at the end if the batches inside were not of that size."""
        self._rows, self._sequences = [], []
        hook = model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
        self._check(size)

    def _before_forward(self, _: Any, args: Any, kwargs: dict[str, Any]) -> None:
        found = sequences_in(kwargs or args)
        if found is not None:
            self._sequences.append(found)

    def _check(self, size: int) -> None:
        if other := [rows for rows in self._rows if rows != size]:
            raise UsageError(
                f"at micro-batch {size} the collator was given {other[0]} rows: the train dataloader has a "
                f"batch size of its own",
                HINT,
            )
        if not self._rows and any(seen != size for seen in self._sequences):
            raise UsageError(
                f"at micro-batch {size} the model's forward pass saw {max(self._sequences)} sequences: the "
                f"train dataloader has a batch size of its own",
                HINT,
            )
        if other := [seen for seen in self._sequences if seen % size]:
            raise UsageError(
                f"at micro-batch {size} the model's forward pass saw {other[0]} sequences: the collator drops "
                f"rows, or adds some",
                "let it make the same number of sequences of each row, or tune your own step by "
                "find_micro_batch",
            )


def sequences_in(inputs: Any) -> int | None:
    """The number of sequences in a forward pass's inputs; None if they hold no tensor.

    A collator without padding puts all sequences into one row, and positions begin anew with each.
    """
    tensors = {name: tensor for name, tensor in tensors_of(inputs) if tensor.ndim}
    if not tensors:
        return None
    ids = next((tensors[n] for n in ("input_ids", "inputs_embeds") if n in tensors), None)
    main: Tensor = next(iter(tensors.values())) if ids is None else ids
    positions = tensors.get("position_ids")
    if len(main) == 1 and positions is not None and positions.shape == main.shape[:2]:
        return int((positions == 0).sum())
    return len(main)
