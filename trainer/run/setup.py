"""From settings to a run that can take its next step: parts, folder, checkpoint, dry run."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list

from autotune.events import Notice
from trainer.artifacts.evaluation_log import EvaluationHistory
from trainer.artifacts.run_folder import RunFolder
from trainer.artifacts.run_record import DataRecord
from trainer.batching.collator import Collator
from trainer.checkpointing.checkpoint import resume
from trainer.config.launch_environment import overrule
from trainer.config.run_config import save_run
from trainer.config.settings import TrainSettings
from trainer.data.sample_order import count_steps
from trainer.evaluation.evaluator import Answering, dry_run_evaluation
from trainer.evaluation.generation import DEFAULT_GENERATION_BATCH, dry_run_generation
from trainer.events import Built, Say, TrainingStarted
from trainer.model.accelerator import make_accelerator, precision
from trainer.model.adapters import default_learning_rate, trainable_summary
from trainer.pretrained.loading import fingerprint_info
from trainer.reading.readers import bundled
from trainer.run.parts import make_engine, make_parts
from trainer.run.rank_agreement import check_alike
from trainer.run.state import Run
from trainer.run.tracking import start_tracking


def prepare(
    settings: TrainSettings,
    say: Say,
    confirm: Callable[[], object],
    should_stop: Callable[[], bool],
) -> Run:
    """A run that is ready: parts made, last checkpoint resumed, largest step and evaluation tried."""
    folder = RunFolder(Path(settings.output_dir))
    workload = settings.workload
    overruled = overrule(workload, os.environ)
    if overruled and os.environ.get("RANK", "0") == "0":
        say(Notice(text=overruled))
    accelerator = make_accelerator(workload, track=settings.track, tracking=folder.tracking)

    bundled_eval = () if workload.data else (bundled("valid"),)
    is_main = accelerator.is_main_process
    parts = make_parts(
        workload,
        eval_data=settings.eval_data or bundled_eval,
        progress=say if is_main else None,
        notify=lambda text: say(Notice(text=text)) if is_main else None,
        should_stop=should_stop,
    )
    check_alike(accelerator, settings, parts)
    store = parts.collator.store
    rate = settings.learning_rate or default_learning_rate(parts.loaded.learning_rate, workload)
    rate *= settings.rate_scale
    if accelerator.is_main_process:
        say(Built(facts=fingerprint_info(parts.loaded, store, accelerator.num_processes)))
        confirm()
    accelerator.wait_for_everyone()
    of_steps = {"weight_decay": settings.weight_decay, "clip_norm": settings.clip_norm}
    engine = make_engine(accelerator, parts, workload, **of_steps)
    if accelerator.is_main_process:
        trained = sum(p.numel() for p in engine.trainable.values())
        need = disk_need(parts.parameters, trained, settings.keep_checkpoints)
        folder.check_space(need, first=checkpoint_bytes(trained), fresh=settings.fresh)
        folder.claim(
            settings.run_key(), fresh=settings.fresh, learning_rate=rate,
            data=data_record(parts.collator), eval_data=data_record(parts.eval_collator),
        )  # fmt: skip
        save_run(folder.path, settings, rate)
    accelerator.wait_for_everyone()
    run = Run(
        settings=settings,
        say=say,
        should_stop=should_stop,
        engine=engine,
        parts=parts,
        folder=folder,
        plan=settings.plan(accelerator.num_processes),
        steps=count_steps(
            len(store), settings.effective_batch, settings.epochs, settings.max_steps
        ),
        learning_rate=rate,
    )
    run.done = 0 if settings.fresh else resume(folder, engine, run.notice)
    engine.memory.release_cached()  # what tokenising and reading a checkpoint left, as a probe does
    dry_run(run)
    run.evaluations = earlier_progress(run)
    start_tracking(accelerator, settings, folder.tracking, done=run.done)
    if run.is_main:
        folder.metrics.forget_after(run.done)
        say_started(run)
    return run


def dry_run(run: Run) -> None:
    """Runs the largest step, evaluation and answers once, so that a lack of memory shows now."""
    largest = run.parts.collator.worst_case_batch(run.own_micro_batch)
    run.engine.dry_run([largest] * min(2, run.plan.accumulation))
    collator = run.parts.eval_collator
    if collator is None:
        return
    dry_run_evaluation(run.engine, collator, size=run.eval_size)
    rows = min(run.settings.generate_rows, len(collator.store))
    if rows == 0:
        return
    if run.longest_answer < (run.settings.max_new_tokens or 0):
        run.notice(
            f"answers have {run.longest_answer} tokens at most: the model has no more positions"
        )
    share = -(-rows // run.plan.world_size)
    size = dry_run_generation(
        run.engine,
        collator,
        most=min(share, run.settings.eval_batch or DEFAULT_GENERATION_BATCH),
        longest=run.longest_answer,
    )
    run.answering = Answering(rows=rows, size=size, longest=run.longest_answer)


def earlier_progress(run: Run) -> EvaluationHistory:
    """The evaluations so far, from the main process; other nodes may not see the run's folder."""
    records = []
    if run.is_main:
        run.folder.evaluations.forget_after(run.done)
        records = run.folder.evaluations.read()
    (progress,) = broadcast_object_list([EvaluationHistory.of(records)])
    assert isinstance(progress, EvaluationHistory)
    return progress


def data_record(collator: Collator | None) -> DataRecord | None:
    """What `run.json` says of the rows; None without rows."""
    if collator is None:
        return None
    stats = collator.store.stats
    return DataRecord(rows=stats.rows, tokens=stats.tokens, digest=stats.digest)


def disk_need(parameters: int, trained: int, keep: int) -> int:
    """Bytes for the final model, the kept checkpoints, the best one and the one being written."""
    return 4 * parameters + checkpoint_bytes(trained) * (keep + 2)


def checkpoint_bytes(trained: int) -> int:
    """A checkpoint holds the trained parameters and their two moments."""
    return 12 * trained


def export_notice(run: Run) -> str | None:
    """A line where the final model's weights will be less exact than the trained ones, which are float32."""
    if run.export_dtype == torch.float32:
        return None
    chosen = run.settings.export_dtype != "auto"
    why = "as --export-dtype says" if chosen else "as the model's checkpoint"
    name = str(run.export_dtype).removeprefix("torch.")
    return f"weights are trained in float32; the final model will be {name}, {why}"


def say_started(run: Run) -> None:
    settings, workload = run.settings, run.settings.workload
    store = run.parts.collator.store
    for text in run.parts.notices(workload):
        run.notice(text)
    run.notice(trainable_summary(run.engine.unwrapped))
    run.notice(run.engine.notice)
    run.notice(export_notice(run))
    if run.engine.is_sharded:
        run.notice(f"sharded over {run.plan.world_size} processes (FSDP2)")
    if run.done:
        run.notice(f"resuming after step {run.done} of {run.steps}")
    run.say(
        TrainingStarted(
            model=workload.model,
            rows=len(store),
            first_step=run.done + 1,
            steps=run.steps,
            effective_batch=run.plan.effective_batch,
            micro_batch=run.plan.micro_batch,
            micro_batch_sizes=settings.micro_batch_sizes,
            accumulation=run.plan.accumulation,
            world_size=run.plan.world_size,
            precision=precision(workload),
            output_dir=str(run.folder.path),
        )
    )
