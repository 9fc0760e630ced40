"""One of two gloo processes that answer rows together: what each finds; and the models that answer."""

from typing import Any

import torch

from tests.support import tiny
from trainer.batching.collator import Collator
from trainer.data.encoder import Encoder
from trainer.evaluation.evaluator import Answering, evaluate_with_answers
from trainer.model.engine import Engine
from trainer.reading.readers import bundled

LONGEST = 9
"""Tokens of an answer."""


def parts(family: str) -> tuple[Engine, Collator]:
    """A model whose weights are large enough for answers that differ."""
    model = tiny.tiny(family, seed=3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(10)
    encoder = Encoder(tiny.tokenizer(), is_causal=family in tiny.CAUSAL)
    engine = tiny.engine(model, device="cpu", dropout=0.0)
    return engine, tiny.collator(model, encoder, bundled("valid"))


def main() -> list[Any]:
    """[is main, loss, BLEU, samples] of an evaluation on this process's share."""
    engine, collator = parts("t5")
    found = evaluate_with_answers(
        engine, collator, step=1, size=32,
        answering=Answering(rows=5, size=2, longest=LONGEST),
    )  # fmt: skip
    is_main = bool(engine.accelerator.is_main_process)
    return [is_main, found.loss, found.bleu, [sample.answer for sample in found.samples]]
