"""The training loop inside a worker: steps, evaluations, checkpoints, and messages about them.

It is the same under a supervisor, which draws, and under `accelerate launch -m trainer`.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from autotune.partition import Costs
from autotune.units import format_bytes
from trainer.artifacts.evaluation_log import evaluation_record
from trainer.batching.step_loader import RankStep, Steps, load_steps
from trainer.checkpointing.checkpoint import Position, save_checkpoint
from trainer.config.settings import TrainSettings
from trainer.evaluation.evaluator import evaluate_with_answers
from trainer.events import CheckpointSaved, Say, StepEnded, TrainingEnded
from trainer.model.finite import NotFinite
from trainer.run.divergence import check_weights, diverged_step, note_skipped_steps
from trainer.run.lr_schedule import rate_share
from trainer.run.results import save_results
from trainer.run.setup import prepare
from trainer.run.state import Run
from trainer.run.step_metrics import Wishes, step_record
from trainer.run.tracking import track


def train(
    settings: TrainSettings, say: Say,
    *, confirm: Callable[[], object], should_stop: Callable[[], bool],
) -> None:  # fmt: skip
    """Trains, and sends events to `say`; the last one is `TrainingEnded`.

    `confirm` is called after `Built`; it returns when training may start.

    Raises:
        ChatlmError: a setting, file, model or folder that the user can fix.
    """
    run = prepare(settings, say, confirm, should_stop)
    started = time.monotonic()
    first = run.done
    finished = take_steps(run)
    if finished:
        check_weights(run)
        save_results(run)
    seconds = time.monotonic() - started
    samples = (run.done - first) * run.plan.effective_batch
    best = run.evaluations.best
    result = {
        "output_dir": str(run.folder.path),
        "steps": run.done,
        "samples": run.done * run.plan.effective_batch,
        "final_loss": run.loss,
        "seconds": seconds,
        "samples_per_second": samples / seconds,
        "peak_bytes": run.peak,
        "best_step": None if best is None else best.step,
        "best_loss": None if best is None else best.loss,
        "skipped_steps": note_skipped_steps(run),
    }
    if run.is_main:
        say(TrainingEnded(result=result, interrupted=not finished))
    run.engine.accelerator.wait_for_everyone()  # an earlier exit of a rank would look like a failure
    run.engine.accelerator.end_training()


def take_steps(run: Run) -> bool:
    """Takes optimizer steps until the run is complete; False when it was asked to stop before."""
    is_evaluated = run.done in dict(run.evaluations.losses)
    if run.done and run.is_due(run.settings.eval_every) and not is_evaluated:
        evaluate(run)  # the run ended between the checkpoint and the evaluation
    if stops_early(run):  # the run was killed before its model was written
        return True
    ended = time.perf_counter()
    for step in load_steps(steps_of(run), range(run.done, run.steps), run.settings.loader_workers):
        wanted = take_step(run, step, ended)
        at_end = run.done == run.steps
        if wanted.stop and not at_end:
            save(run)  # a resume runs an evaluation that is due now
            return False
        if at_end or run.is_due(run.settings.eval_every):
            if at_end and run.parts.eval_collator is not None:
                save(run)  # a failure of the last evaluation then loses no training
            evaluate(run)
            if at_end or stops_early(run):
                return True
        if wanted.save or checkpoint_is_due(run):
            save(run)
        ended = time.perf_counter()
    return True


def steps_of(run: Run) -> Steps:
    settings, collator = run.settings, run.parts.collator
    costs = Costs(
        longest=collator.longest(),
        memory_fractions=settings.memory_fractions,
        overhead=settings.overhead,
    )
    return Steps(
        collator, run.order(), run.plan, costs=costs,
        rank=run.engine.accelerator.process_index, in_step=run.engine.is_sharded,
    )  # fmt: skip


def take_step(run: Run, step: RankStep, started: float) -> Wishes:
    """Takes, logs and reports one optimizer step; returns what any rank wants next."""
    settings, engine = run.settings, run.engine
    torch.manual_seed(step_seed(run))
    rate = run.learning_rate * rate_share(settings.schedule, run.done, run.steps, settings.warmup)
    loss = engine.forward_backward(step.batches, target_tokens=step.target_tokens)
    try:
        norm = engine.optimizer_step(rate)
    except NotFinite as error:
        raise diverged_step(run, step, error.part) from None
    run.done += 1
    record, wanted = step_record(
        run, step, loss, grad_norm=norm, learning_rate=rate, started=started,
        own=Wishes(stop=run.should_stop(), save=run.is_long_unsaved()),
    )  # fmt: skip
    note_step(run, record)
    return wanted


def step_seed(run: Run) -> int:
    """The seed of a step's random numbers (dropout); a resume needs no generator state."""
    rank: int = run.engine.accelerator.process_index
    return ((run.settings.workload.seed * 1_000_003 + run.done) * 1009 + rank) % 2**63


def note_step(run: Run, record: Mapping[str, Any]) -> None:
    peak, budget = record["device_peak_bytes"], max(run.settings.budgets, default=math.inf)
    if peak > budget >= run.peak:
        advice = "; a smaller --micro-batch takes less" if run.plan.micro_batch > 1 else ""
        run.notice(
            f"the run peaked at {format_bytes(peak)} by step {run.done}, above the budget of "
            f"{format_bytes(int(budget))}{advice}"
        )
    run.peak = max(run.peak, peak)
    run.loss = record["loss"]
    if run.is_main:
        run.folder.metrics.add(record)
        run.say(StepEnded(record=record))
    track(run.engine.accelerator, "train", record)


def checkpoint_is_due(run: Run) -> bool:
    """Whether a checkpoint is due after this step: by its number, or as the best evaluation."""
    is_best = run.evaluations.best is not None and run.evaluations.best.step == run.done
    return is_best or run.is_due(run.settings.checkpoint_every)


def save(run: Run) -> None:
    check_weights(run)
    position = Position(
        step=run.done,
        steps=run.steps,
        samples=run.done * run.plan.effective_batch,
        seed=run.settings.workload.seed,
        profile=run.settings.profile,
        settings=run.settings.as_json(),
        best=run.evaluations.best,
    )
    path = save_checkpoint(
        run.folder, run.engine, position, run.parts.loaded.original,
        keep=run.settings.keep_checkpoints,
    )  # fmt: skip
    run.note_saved()
    if run.is_main:
        run.notice(run.folder.settle())
        run.say(CheckpointSaved(step=run.done, path=str(path)))
    run.engine.accelerator.wait_for_everyone()


def evaluate(run: Run) -> None:
    collator = run.parts.eval_collator
    if collator is None:
        return
    answered = "" if run.answering is None else f", answering {run.answering.rows:,} of them"
    run.notice(f"evaluating {len(collator.store):,} rows{answered}")
    event = evaluate_with_answers(
        run.engine, collator, step=run.done, size=run.eval_size, answering=run.answering
    )
    if not math.isfinite(event.loss):
        check_weights(run)
        run.notice(
            f"the evaluation after step {run.done} has a loss that is not finite (inf or NaN): it counts "
            f"as worse than every other; look at the rows of --eval-data"
        )
    run.evaluations = run.evaluations.then(run.done, event.loss)
    record = evaluation_record(event)
    track(run.engine.accelerator, "evaluation", record)
    if run.is_main:
        run.folder.evaluations.add(record)
        run.say(event)


def stops_early(run: Run) -> bool:
    """Whether the last `patience` evaluations were no better than an earlier one."""
    patience = run.settings.patience
    if patience is None or not run.engine.any_rank(run.evaluations.since_best >= patience):
        return False
    run.notice(run.evaluations.early_stop_text(run.done, run.steps))
    return True
