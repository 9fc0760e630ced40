"""Loss over a whole evaluation set, per target token, shared out over the ranks."""

import torch

from trainer.batches import Collator
from trainer.engine import Engine


def evaluate(engine: Engine, collator: Collator, *, micro_batch: int) -> float:
    """The mean loss of a target token; every rank gets the same number."""
    accelerator = engine.accelerator
    rows = range(accelerator.process_index, len(collator.store), accelerator.num_processes)
    totals = torch.zeros(2, dtype=torch.float64, device=accelerator.device)  # (loss, tokens)
    engine.model.eval()
    with torch.no_grad():
        for start in range(0, len(rows), micro_batch):
            batch = collator.batch(rows[start : start + micro_batch])
            totals[0] += engine.summed_loss(batch)
            totals[1] += batch.target_tokens
    engine.model.train()
    loss, tokens = accelerator.reduce(totals, reduction="sum").tolist()
    return float(loss / tokens)
