"""The errors of a run whose numbers are no longer finite: which step, which rows, what is left.

Every rank calls these and raises the same error, so none waits for another.
"""

import numpy as np
from accelerate.utils import broadcast_object_list, gather_object

from autotune.errors import DivergedError
from trainer.batching.step_loader import RankStep
from trainer.checkpointing.checkpoint import checkpoint_tensors
from trainer.data.sample_order import Rows
from trainer.model.adapters import trainable_summary
from trainer.model.engine import MOST_SKIPS
from trainer.model.finite import Part, first_not_finite
from trainer.run.state import Run

SHOWN = 5
"""Row numbers that a message lists."""


def diverged_step(run: Run, step: RankStep, part: Part) -> DivergedError:
    """The error for the next step, which no rank has taken; takes a forward pass for each of its rows."""
    found = rows_without_loss(run, step.rows) if part is Part.LOSS else []
    ranks = gather_object([(found, step.rows.tolist())])
    culprits = {row for rows, _ in ranks for row in rows}
    everyone = {row for _, rows in ranks for row in rows}
    number, count = run.done + 1, len(everyone)
    if part is Part.SCALED_GRADIENT:
        why = f"{MOST_SKIPS + 1} steps in a row had gradients that are not finite in fp16"
    else:
        why = f"its {part} is not finite (inf or NaN)"
    if culprits == everyone:
        rows = f"all of its {count:,} rows have such a loss: {listed(everyone)}"
    elif culprits:
        rows = f"it comes from {len(culprits):,} of its {count:,} rows: {listed(culprits)}"
    else:
        rows = f"its {count:,} rows are {listed(everyone)}"
    hint = advice(run, part, has_culprits=0 < len(culprits) < count)
    return same_on_all(f"step {number} was not taken: {why}; {rows}", hint, run)


def rows_without_loss(run: Run, rows: Rows) -> list[int]:
    """This rank's rows whose loss alone is not finite, without dropout."""
    engine, collator = run.engine, run.parts.collator
    with engine.evaluating():
        losses = [engine.summed_loss(collator.batch([row])).item() for row in rows]
    return [int(row) for row in rows[~np.isfinite(losses)]]


def check_weights(run: Run) -> None:
    """Raises DivergedError if the last step left a weight or an optimizer state that is not finite.

    A learning rate that is far too high does that, with a finite loss and gradient.
    """
    tensors = {k: v for part in checkpoint_tensors(run.engine).values() for k, v in part.items()}
    name = first_not_finite(tensors)
    if name is not None:
        what = f"after step {run.done} {name} is not finite (inf or NaN), so nothing is saved"
        raise same_on_all(what, advice(run, Part.GRADIENT, has_culprits=False), run)


def note_skipped_steps(run: Run) -> int:
    """Steps that fp16's loss scale skipped, those before a resume included; a notice tells of them."""
    skipped = sum(bool(record["skipped"]) for record in run.folder.metrics.read())
    if skipped:
        run.notice(f"fp16's loss scale skipped {skipped:,} of {run.done:,} steps")
    return skipped


def advice(run: Run, part: Part, *, has_culprits: bool) -> str:
    """What to try."""
    if part is Part.SCALED_GRADIENT:
        return "use --precision bf16 or fp32, or a lower --learning-rate"
    if has_culprits:
        return "look at these rows, counted from 1 over all --data; if they are good, lower --learning-rate"
    if run.done == 0:
        return (
            "no update was made yet, so look at the model's weights and these rows, counted from 1"
        )
    return "use a lower --learning-rate, or look at these rows, counted from 1"


def listed(rows: set[int]) -> str:
    """`3, 7 and 9`, or the first few and a count; row numbers from 1."""
    numbers = [f"{row + 1:,}" for row in sorted(rows)]
    if len(numbers) > SHOWN:
        return f"{', '.join(numbers[:SHOWN])} and {len(numbers) - SHOWN:,} more"
    return " and ".join(filter(None, [", ".join(numbers[:-1]), numbers[-1]]))


def same_on_all(what: str, hint: str, run: Run) -> DivergedError:
    """The main process's error on every rank, with the checkpoint that is left: only it sees the folder."""
    known = run.folder.checkpoints() if run.is_main else []
    kept = f"; {known[-1]} is the last checkpoint" if known else "; no checkpoint was saved yet"
    if known and trainable_summary(run.engine.unwrapped) is None:
        hint += f"; --model {known[-1]} with another --output-dir trains on from there"
    else:
        hint += "; --fresh or another --output-dir starts anew"
    (pair,) = broadcast_object_list([(what + kept, hint)])
    return DivergedError(*pair)
