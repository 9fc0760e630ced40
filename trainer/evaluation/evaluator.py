"""An evaluation: loss over a whole set, per target token, and what answers to its first rows are worth.

Both are shared out over the ranks. How answers come about is `generate`'s business, what is kept of
an evaluation `evaluations`'.
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
from trainer.evaluation.generation import answer
from trainer.evaluation.text_metrics import score
from trainer.events import Evaluated, Sample
from trainer.model.engine import Engine

SHOWN = 3
"""Samples that are said of an evaluation: the same rows each time, so that one sees them change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """How an evaluation answers rows."""

    rows: int
    """From the first on."""
    size: int
    """Sequences at once on this rank."""
    longest: int
    """Tokens of an answer."""


def evaluate(engine: Engine, collator: Collator, *, size: int) -> float:
    """The mean loss of a target token; every rank gets the same number.

    `size` is this rank's own: sequences per forward pass.
    """
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
    """The whole evaluation after a step; every rank gets its loss, the main process its scores."""
    started = time.monotonic()
    event = Evaluated(step=step, loss=evaluate(engine, collator, size=size))
    if answering is not None:
        event = _with_scores(event, engine, collator, answering)
    return replace(event, seconds=time.monotonic() - started)


def dry_run_evaluation(engine: Engine, collator: Collator, *, size: int) -> None:
    """Runs the largest batch that an evaluation can have: what will not fit fails here."""
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
    shown = rows[:SHOWN]
    prompts = _texts(collator, map(collator.store.source, shown))
    return replace(
        event,
        **asdict(score([answers[row] for row in rows], references)),
        generated_rows=len(rows),
        samples=tuple(
            Sample(prompt=prompt, reference=references[row], answer=answers[row])
            for row, prompt in zip(shown, prompts, strict=True)
        ),
    )


def _texts(collator: Collator, sequences: Iterable[npt.NDArray[Any]]) -> list[str]:
    texts: list[str] = collator.encoder.tokenizer.batch_decode(
        [ids.tolist() for ids in sequences], skip_special_tokens=True
    )
    return [text.strip() for text in texts]


def _own_rows(engine: Engine, collator: Collator) -> npt.NDArray[np.int64]:
    """This rank's, the longest first: little is padded, and what will not fit fails at once."""
    lengths = collator.lengths(np.arange(len(collator.store))).sum(1)
    rank, world = engine.accelerator.process_index, engine.accelerator.num_processes
    return np.argsort(-lengths, kind="stable")[rank::world]
