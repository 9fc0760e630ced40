"""No micro-batch of the data takes more than the one that a probe and a dry run take."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.support import tiny
from tests.support.data_files import json_lines
from trainer.batching.collator import Batch
from trainer.data.encoder import Encoder
from trainer.model.engine import Engine


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most bytes that tensors made inside held at once: exact, unlike what a process holds."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.remove(key)
        self.now -= size


def peak(engine: Engine, batch: Batch) -> int:
    """Bytes of tensors in a forward and backward pass."""
    live = Live()
    with live:
        engine.dry_run([batch])
    return live.peak


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_padded_micro_batch_takes_no_more_than_the_worst(family: str, tmp_path: Path) -> None:
    """Of the same shape: where nothing at all is padded, most models make no mask and hold less."""
    model = tiny.tiny(family)
    rows = [{"prompt": "天" * n, "response": "地" * n} for n in (60, 50, 40, 60)]
    encoder = Encoder(tiny.tokenizer(), is_causal=not model.config.is_encoder_decoder)
    collator = tiny.collator(model, encoder, json_lines(tmp_path, rows), longest=256)
    engine = tiny.engine(model, device="cpu", dropout=0.0)
    engine.preallocate(collator.worst_case_batch(1))
    padded, worst = collator.batch([0, 1, 2, 3]), collator.worst_case_batch(4)
    assert padded.labels.shape == worst.labels.shape

    assert peak(engine, padded) <= peak(engine, worst)
