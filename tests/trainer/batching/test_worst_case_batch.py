"""No micro-batch of the data takes more than the one that a probe and a dry run take."""

import copy
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.support import tiny
from trainer.batching.collator import Batch, Collator
from trainer.config.settings import WorkloadSettings
from trainer.data.encoder import Encoder
from trainer.data.token_store import open_store
from trainer.model.accelerator import make_accelerator
from trainer.model.engine import Engine

SETTINGS = WorkloadSettings(device="cpu", dropout=0.0)


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
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    encoder = Encoder(tiny.tokenizer(), is_causal=not model.config.is_encoder_decoder)
    store = open_store((str(file),), encoder, max_source=256, max_target=256)
    start = getattr(model.config, "decoder_start_token_id", None)
    collator = Collator(store, encoder, start)
    engine = Engine(make_accelerator(SETTINGS), copy.deepcopy(model), SETTINGS)
    engine.preallocate(collator.worst_case_batch(1))
    padded, worst = collator.batch([0, 1, 2, 3]), collator.worst_case_batch(4)
    assert padded.labels.shape == worst.labels.shape

    assert peak(engine, padded) <= peak(engine, worst)
