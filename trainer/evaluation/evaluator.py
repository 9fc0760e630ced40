"""An evaluation: the loss of a whole set per target token, and scores of answers to its first rows.

The rows are divided among the ranks. `generation` makes the answers.
"""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import gather_object

from trainer.batching.collator import Collator
from trainer.evaluation.generation import answer, own_rows
from trainer.evaluation.text_metrics import score
from trainer.events import Evaluated, Sample
from trainer.model.engine import Engine

SHOWN = 3
"""Samples that an evaluation reports: the first rows, the same each time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """How an evaluation generates answers."""

    rows: int
    """The number of rows, from the first on."""
    size: int
    """Sequences per batch on this rank."""
    longest: int
    """Highest number of tokens of an answer."""


def evaluate(engine: Engine, collator: Collator, *, size: int) -> float:
    """The mean loss per target token, the same on every rank; `size` is sequences per forward pass."""
    accelerator = engine.accelerator
    rows = _own_rows(engine, collator)
    totals = torch.zeros(2, dtype=torch.float64, device=accelerator.device)  # (loss, tokens)
    with engine.evaluating():
        for start in range(0, len(rows), size):
            batch = collator.batch(rows[start : start + size])
            totals[0] += engine.summed_loss(batch)
            totals[1] += batch.target_tokens
    loss, tokens = accelerator.reduce(totals, reduction="sum").tolist()
    return float(loss / tokens)


def evaluate_with_answers(
    engine: Engine, collator: Collator, *, step: int, size: int, answering: Answering | None
) -> Evaluated:
    """The evaluation after a step; every rank gets the loss, the main process also the scores."""
    started = time.monotonic()
    event = Evaluated(step=step, loss=evaluate(engine, collator, size=size))
    if answering is not None:
        event = _with_scores(event, engine, collator, answering)
    return replace(event, seconds=time.monotonic() - started)


def dry_run_evaluation(engine: Engine, collator: Collator, *, size: int) -> None:
    """Runs the largest batch of an evaluation, so that a lack of memory shows now."""
    most = max(1, min(size, len(_own_rows(engine, collator))))
    with engine.evaluating():
        engine.summed_loss(collator.worst_case_batch(most))


def _with_scores(
    event: Evaluated, engine: Engine, collator: Collator, answering: Answering
) -> Evaluated:
    rows = range(answering.rows)
    own = answer(engine, collator, rows, size=answering.size, longest=answering.longest)
    texts = zip(own, _texts(collator, own.values()), strict=True)
    answers: dict[int, str] = dict(gather_object(list(texts)))
    if not engine.accelerator.is_main_process:
        return event
    references = _texts(collator, map(collator.store.target, rows))
    prompts = _texts(collator, map(collator.store.source, rows[:SHOWN]))
    samples = tuple(
        Sample(prompt=prompt, reference=references[row], answer=answers[row])
        for row, prompt in enumerate(prompts)
    )
    scores = asdict(score([answers[row] for row in rows], references))
    return replace(event, **scores, generated_rows=len(rows), samples=samples)


def _texts(collator: Collator, sequences: Iterable[npt.NDArray[Any]]) -> list[str]:
    texts: list[str] = collator.encoder.tokenizer.batch_decode(
        [ids.tolist() for ids in sequences], skip_special_tokens=True
    )
    return [text.strip() for text in texts]


def _own_rows(engine: Engine, collator: Collator) -> npt.NDArray[np.int64]:
    return own_rows(engine, collator.lengths(np.arange(len(collator.store))).sum(1))
