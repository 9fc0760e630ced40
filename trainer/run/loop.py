"""The training run inside a worker: steps, evaluations, checkpoints, and what is said about them.

It runs under a supervisor, which draws, or alone under `accelerate launch -m trainer`; it cannot tell.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from autotune.partition import Costs
from autotune.units import format_bytes
from trainer.artifacts.evaluation_log import evaluation_record
from trainer.batching.step_loader import Step, Steps, load_steps
from trainer.checkpointing.checkpoint import Position, save_checkpoint
from trainer.config.settings import TrainSettings
from trainer.evaluation.evaluator import evaluate_with_answers
from trainer.events import CheckpointSaved, Say, StepEnded, TrainingEnded
from trainer.run.lr_schedule import rate_share
from trainer.run.results import save_results
from trainer.run.setup import prepare
from trainer.run.state import Run
from trainer.run.step_metrics import step_record, sum_up
from trainer.run.tracking import track


def train(
    settings: TrainSettings,
    say: Say,
    *,
    confirm: Callable[[], object],
    should_stop: Callable[[], bool],
) -> None:
    """The whole run; `say` takes its events, the last one `TrainingEnded`.

    `confirm` is called once the model and the data are read and the main process has said what it
    found (`Built`): it returns when that may be trained.

    Raises:
        ChatlmError: a setting, file, model or folder that the user can mend.
    """
    run = prepare(settings, say, confirm, should_stop)
    started = time.monotonic()
    first = run.done
    finished = take_steps(run)
    if finished:
        save_results(run)
    seconds = time.monotonic() - started
    samples = (run.done - first) * run.plan.effective_batch
    best = run.progress.best
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
    }
    if run.is_main:
        say(TrainingEnded(result=result, interrupted=not finished))
    run.engine.accelerator.wait_for_everyone()  # a rank that is gone before would look like a fault
    run.engine.accelerator.end_training()


def take_steps(run: Run) -> bool:
    """Optimizer steps until the run is complete; False when it was asked to stop before."""
    if run.done and lacks_evaluation(run):
        evaluate(run)
    if gives_up(run):  # it was killed before its model was written
        return True
    ended = time.perf_counter()
    for step in load_steps(steps_of(run), range(run.done, run.steps), run.settings.loader_workers):
        stop = take_step(run, step, ended)
        ended = time.perf_counter()
        at_end = run.done == run.steps
        if stop and not at_end:
            save(run)  # an evaluation that is due now is made up for when the run goes on
            return False
        if at_end or evaluation_is_due(run):
            if at_end and run.eval_collator is not None:
                save(run)  # whatever ends the last evaluation, the training is not lost
            evaluate(run)
            if at_end or gives_up(run):
                return True
        if checkpoint_is_due(run):
            save(run)
        ended = time.perf_counter()
    return True


def steps_of(run: Run) -> Steps:
    """The run's steps as this rank sees them."""
    settings = run.settings
    return Steps(
        run.collator,
        run.order(),
        run.plan,
        costs=Costs(
            longest=run.collator.longest(),
            memory_fractions=settings.shares,
            overhead=settings.overhead,
        ),
        rank=run.engine.accelerator.process_index,
        in_step=run.engine.is_sharded,
    )


def take_step(run: Run, step: Step, started: float) -> bool:
    """One optimizer step, written down and said; whether any rank was asked to stop."""
    settings, engine = run.settings, run.engine
    torch.manual_seed(step_seed(run))
    rate = run.learning_rate * rate_share(settings.schedule, run.done, run.steps, settings.warmup)
    loss = engine.forward_backward(step.batches, target_tokens=step.target_tokens)
    norm = engine.optimizer_step(rate)
    run.done += 1
    summed = sum_up(engine, settings, step, loss, stop=run.should_stop())
    record = step_record(
        summed,
        step,
        number=run.done,
        effective_batch=run.plan.effective_batch,
        rows=len(run.collator.store),
        grad_norm=norm,
        skipped=engine.skipped,
        learning_rate=rate,
        seconds=time.perf_counter() - started,
    )
    note_step(run, record)
    return summed.stop


def step_seed(run: Run) -> int:
    """Random numbers (dropout) of a step follow from its number: a resume needs no saved state."""
    rank: int = run.engine.accelerator.process_index
    return ((run.settings.workload.seed * 1_000_003 + run.done) * 1009 + rank) % 2**63


def note_step(run: Run, record: Mapping[str, Any]) -> None:
    peak, budget = record["device_peak_bytes"], max(run.settings.budgets, default=math.inf)
    if peak > budget >= run.peak:
        advice = "; a smaller --micro-batch takes less" if run.plan.micro_batch > 1 else ""
        run.notice(
            f"by step {run.done} the run has peaked at {format_bytes(peak)}, above the budget of "
            f"{format_bytes(int(budget))}{advice}"
        )
    run.peak = max(run.peak, peak)
    run.loss = record["loss"]
    if run.is_main:
        run.folder.metrics.add(record)
        run.say(StepEnded(record=record))
    track(run.engine.accelerator, "train", record)


def checkpoint_is_due(run: Run) -> bool:
    """Whether one is due after this step, or its evaluation was the best so far."""
    every = run.settings.checkpoint_every
    is_best = run.progress.best is not None and run.progress.best.step == run.done
    return is_best or (run.ends_epoch if every is None else run.done % every == 0)


def save(run: Run) -> None:
    position = Position(
        step=run.done,
        steps=run.steps,
        samples=run.done * run.plan.effective_batch,
        seed=run.settings.workload.seed,
        profile=run.settings.profile,
        settings=run.settings.as_json(),
        best=run.progress.best,
    )
    path = save_checkpoint(
        run.folder,
        run.engine,
        position,
        run.loaded.encoder.tokenizer,
        keep=run.settings.keep_checkpoints,
    )
    if run.is_main:
        run.say(CheckpointSaved(step=run.done, path=str(path)))
    run.engine.accelerator.wait_for_everyone()


def evaluation_is_due(run: Run) -> bool:
    every = run.settings.eval_every
    return run.ends_epoch if every is None else run.done % every == 0


def lacks_evaluation(run: Run) -> bool:
    """Whether the run was stopped between the checkpoint of this step and its evaluation."""
    return evaluation_is_due(run) and run.done not in dict(run.progress.losses)


def evaluate(run: Run) -> None:
    """Loss over the evaluation set, and answers; the same figures on every rank."""
    if run.eval_collator is None:
        return
    answered = "" if run.answering is None else f", answering {run.answering.rows:,} of them"
    run.notice(f"evaluating {len(run.eval_collator.store):,} rows{answered}")
    event = evaluate_with_answers(
        run.engine, run.eval_collator, step=run.done, size=run.eval_size, answering=run.answering
    )
    run.progress = run.progress.then(run.done, event.loss)
    record = evaluation_record(event)
    track(run.engine.accelerator, "evaluation", record)
    if run.is_main:
        run.folder.evaluations.add(record)
        run.say(event)


def gives_up(run: Run) -> bool:
    """Whether the last evaluations were no better for as long as the run's patience lasts."""
    patience = run.settings.patience
    if patience is None or not run.engine.any_rank(run.progress.since_best >= patience):
        return False
    run.notice(run.progress.stop_words(run.done, run.steps))
    return True
