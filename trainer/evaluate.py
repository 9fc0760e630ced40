"""Loss over a whole evaluation set, per target token, shared out over the ranks."""

import torch

from trainer.batches import Collator
from trainer.engine import Engine


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


def rehearse_evaluation(engine: Engine, collator: Collator, *, size: int) -> None:
    """Runs the largest batch that an evaluation can have: what will not fit fails here."""
    most = max(1, min(size, len(_own_rows(engine, collator))))
    with engine.evaluating():
        engine.summed_loss(collator.worst(most))


def _own_rows(engine: Engine, collator: Collator) -> range:
    accelerator = engine.accelerator
    return range(accelerator.process_index, len(collator.store), accelerator.num_processes)
