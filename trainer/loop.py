"""The training run inside a worker: steps, evaluations, checkpoints, and what is said about them.

It runs under a supervisor, which draws, or alone under `accelerate launch -m trainer`; it cannot tell.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autotune.plan import Plan
from trainer.batches import Collator
from trainer.checkpoint import Progress, resume, save_checkpoint
from trainer.engine import Engine, make_accelerator, precision
from trainer.evaluate import evaluate, rehearse_evaluation
from trainer.export import export_model
from trainer.feed import feed
from trainer.journal import Journal, best_of
from trainer.messages import Say
from trainer.metrics import as_record, sum_up
from trainer.models import Loaded, load_model
from trainer.order import SampleOrder, count_steps
from trainer.rows import bundled
from trainer.run_folder import RunFolder
from trainer.settings import TrainSettings
from trainer.steps import Steps
from trainer.store import TokenStore, open_store
from trainer.workload import fingerprint_facts

LEAST_WARMUP = 10
"""Steps. Adam's first ones divide by what a single gradient happens to be; see `engine.EPSILON`."""


@dataclass(slots=True)
class Run:
    """A run in progress: its parts, built once, and the position in it."""

    settings: TrainSettings
    say: Say
    should_stop: Callable[[], bool]
    engine: Engine
    loaded: Loaded
    collator: Collator
    eval_collator: Collator | None
    folder: RunFolder
    plan: Plan
    steps: int
    learning_rate: float
    done: int = 0
    """Optimizer steps done, earlier parts of the run included."""
    loss: float | None = None
    """Of the last step."""
    peak: int = 0

    @property
    def is_main(self) -> bool:
        return bool(self.engine.accelerator.is_main_process)

    @property
    def own_size(self) -> int:
        """This rank's micro-batch."""
        rank: int = self.engine.accelerator.process_index
        return self.plan.sizes[rank]

    @property
    def eval_size(self) -> int:
        """Sequences of this rank's forward pass in an evaluation."""
        return self.settings.eval_batch or self.own_size


def train(
    settings: TrainSettings,
    say: Say,
    *,
    confirm: Callable[[], object],
    should_stop: Callable[[], bool],
) -> None:
    """The whole run; what happens is said as messages, the last one `done`.

    `confirm` is called once the model and the data are read and the main process has said what it
    found (`built`): it returns when that may be trained.

    Raises:
        ChatlmError: a setting, file, model or folder that the user can mend.
    """
    run = prepare(settings, say, confirm, should_stop)
    started = time.monotonic()
    first = run.done
    finished = take_steps(run)
    if finished:
        save_model(run)
    seconds = time.monotonic() - started
    samples = (run.done - first) * run.plan.effective_batch
    result = {
        "output_dir": str(run.folder.path),
        "steps": run.done,
        "samples": run.done * run.plan.effective_batch,
        "final_loss": run.loss,
        "seconds": seconds,
        "samples_per_second": samples / seconds,
        "peak_bytes": run.peak,
        "best_step": None if (best := best_of(run.folder.evaluations)) is None else best.step,
        "best_loss": None if best is None else best.loss,
    }
    if run.is_main:
        say({"type": "done", "result": result, "interrupted": not finished})
    run.engine.accelerator.wait_for_everyone()  # a rank that is gone before would look like a fault
    run.engine.accelerator.end_training()


def prepare(
    settings: TrainSettings,
    say: Say,
    confirm: Callable[[], object],
    should_stop: Callable[[], bool],
) -> Run:
    """Builds the parts, goes on from a checkpoint if there is one, and rehearses the worst case."""
    accelerator = make_accelerator(settings.workload)
    workload = settings.workload
    loaded = load_model(workload.model, dropout=workload.dropout, seed=workload.seed)
    with accelerator.main_process_first():
        store = _store(settings, loaded, workload.data or (bundled("train"),))
        eval_files = settings.eval_data or (() if workload.data else (bundled("valid"),))
        eval_store = _store(settings, loaded, eval_files) if eval_files else None
    folder = RunFolder(Path(settings.output_dir))
    if accelerator.is_main_process:
        say({"type": "built", "facts": fingerprint_facts(loaded, store, accelerator.num_processes)})
        confirm()
        folder.check_space(_disk_need(loaded, settings))
        folder.claim(settings.identity(), fresh=settings.fresh)
    accelerator.wait_for_everyone()
    start = getattr(loaded.model.config, "decoder_start_token_id", None)
    collator = Collator(store, loaded.codec, start)
    engine = Engine(
        accelerator,
        loaded.model,
        workload,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
    )
    run = Run(
        settings=settings,
        say=say,
        should_stop=should_stop,
        engine=engine,
        loaded=loaded,
        collator=collator,
        eval_collator=None if eval_store is None else Collator(eval_store, loaded.codec, start),
        folder=folder,
        plan=settings.plan(accelerator.num_processes),
        steps=count_steps(
            len(store), settings.effective_batch, settings.epochs, settings.max_steps
        ),
        learning_rate=(settings.learning_rate or loaded.learning_rate) * settings.rate_scale,
    )
    engine.make_resident(collator.worst(1))
    run.done = resume(folder, engine, lambda text: say({"type": "notice", "text": text}))
    engine.rehearse([collator.worst(run.own_size)] * min(2, run.plan.accumulation))
    if run.eval_collator is not None:
        rehearse_evaluation(engine, run.eval_collator, size=run.eval_size)
    if run.is_main:
        for journal in (Journal(folder.metrics), folder.evaluations):
            journal.forget_after(run.done)
        _say_started(run, store)
    return run


def take_steps(run: Run) -> bool:
    """Optimizer steps until the run is complete; False when it was asked to stop before."""
    order = SampleOrder(len(run.collator.store), run.settings.workload.seed)
    accelerator = run.engine.accelerator
    steps = Steps(
        run.collator,
        order,
        run.plan,
        overhead=run.settings.overhead,
        rank=accelerator.process_index,
        in_step=run.engine.is_sharded,
    )
    if _lacks_evaluation(run):
        _evaluate(run)
    ended = time.perf_counter()
    for step in feed(steps, range(run.done, run.steps), run.settings.loader_workers):
        torch.manual_seed(_step_seed(run))
        rate = run.learning_rate * schedule(run.done, run.steps, run.settings.warmup)
        loss = run.engine.accumulate(step.batches, target_tokens=step.target_tokens)
        norm = run.engine.update(rate)
        run.done += 1
        summed = sum_up(run.engine, run.settings, step, loss, stop=run.should_stop())
        now = time.perf_counter()
        record = as_record(
            summed,
            step,
            number=run.done,
            effective_batch=run.plan.effective_batch,
            rows=len(run.collator.store),
            grad_norm=norm,
            learning_rate=rate,
            seconds=now - ended,
        )
        _log(run, record)
        ended, stop = now, summed.stop
        at_end = run.done == run.steps
        if _is_due(run) or (stop and not at_end):
            _save_checkpoint(run)
            ended = time.perf_counter()
        if stop and not at_end:
            return False  # an evaluation that is due now is made up for when the run goes on
        if at_end or _ends_epoch(run):
            _evaluate(run)
            ended = time.perf_counter()
    return True


def schedule(step: int, steps: int, warmup: float) -> float:
    """The learning rate of step `step` (from 0) as a share of its peak: linear up, cosine down."""
    rising = max(1, round(warmup * steps), min(LEAST_WARMUP, steps // 2))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def save_model(run: Run) -> None:
    """Writes the final model, that of the last step, and says that the run is finished."""
    export_model(run.folder, run.engine, run.loaded.codec.tokenizer)
    if run.is_main:
        run.folder.finish()
    run.engine.accelerator.wait_for_everyone()


def _store(settings: TrainSettings, loaded: Loaded, files: tuple[str, ...]) -> TokenStore:
    return open_store(
        files,
        loaded.codec,
        max_source=settings.workload.max_source_length,
        max_target=settings.workload.max_target_length,
    )


def _disk_need(loaded: Loaded, settings: TrainSettings) -> int:
    """Bytes of the final model, the checkpoints that are kept, the best and the one being written."""
    parameters = sum(p.numel() for p in loaded.model.parameters())
    return 4 * parameters * (1 + 3 * (settings.keep_checkpoints + 2))


def _say_started(run: Run, store: TokenStore) -> None:
    settings = run.settings
    notice = store.truncation_notice(
        settings.workload.max_source_length, settings.workload.max_target_length
    )
    if notice:
        run.say({"type": "notice", "text": notice})
    if run.engine.is_sharded:
        over = f"sharded over {run.plan.world_size} processes (FSDP2)"
        run.say({"type": "notice", "text": over})
    if run.done:
        run.say({"type": "notice", "text": f"going on after step {run.done} of {run.steps}"})
    run.say(
        {
            "type": "started",
            "model": settings.workload.model,
            "rows": len(store),
            "first_step": run.done + 1,
            "steps": run.steps,
            "effective_batch": run.plan.effective_batch,
            "micro_batch": run.plan.micro_batch,
            "micro_batch_sizes": settings.micro_batch_sizes,
            "accumulation": run.plan.accumulation,
            "world_size": run.plan.world_size,
            "precision": precision(settings.workload),
            "output_dir": str(run.folder.path),
        }
    )


def _step_seed(run: Run) -> int:
    """Random numbers (dropout) of a step follow from its number: a resume needs no saved state."""
    rank: int = run.engine.accelerator.process_index
    return ((run.settings.workload.seed * 1_000_003 + run.done) * 1009 + rank) % 2**63


def _log(run: Run, record: Mapping[str, Any]) -> None:
    run.peak = max(run.peak, record["device_peak_bytes"])
    run.loss = record["loss"]
    if run.is_main:
        Journal(run.folder.metrics).add(record)
        run.say({"type": "step", "record": record})


def _ends_epoch(run: Run) -> bool:
    rows, effective = len(run.collator.store), run.plan.effective_batch
    return run.done * effective // rows > (run.done - 1) * effective // rows


def _is_due(run: Run) -> bool:
    """Whether a checkpoint is due after this step; the end of the run saves the model instead."""
    if run.done == run.steps:
        return False
    every = run.settings.checkpoint_every
    return _ends_epoch(run) if every is None else run.done % every == 0


def _save_checkpoint(run: Run) -> None:
    progress = Progress(
        step=run.done,
        steps=run.steps,
        samples=run.done * run.plan.effective_batch,
        seed=run.settings.workload.seed,
        profile=run.settings.profile,
        settings=run.settings.as_json(),
        best=best_of(run.folder.evaluations),
    )
    path = save_checkpoint(
        run.folder,
        run.engine,
        progress,
        run.loaded.codec.tokenizer,
        keep=run.settings.keep_checkpoints,
    )
    if run.is_main:
        run.say({"type": "checkpoint", "step": run.done, "path": str(path)})
    run.engine.accelerator.wait_for_everyone()


def _lacks_evaluation(run: Run) -> bool:
    """Whether the run stopped between the checkpoint of this step and its evaluation."""
    if run.eval_collator is None or not run.done or not _ends_epoch(run):
        return False
    known = run.folder.evaluations.read() if run.is_main else []
    return run.engine.any_rank(run.is_main and (not known or known[-1]["step"] != run.done))


def _evaluate(run: Run) -> None:
    if run.eval_collator is None:
        return
    if run.is_main:
        run.say({"type": "notice", "text": f"evaluating {len(run.eval_collator.store):,} rows"})
    loss = evaluate(run.engine, run.eval_collator, size=run.eval_size)
    if run.is_main:
        run.folder.evaluations.add({"step": run.done, "loss": loss})
        run.say({"type": "evaluated", "step": run.done, "loss": loss})
    _keep_best(run)


def _keep_best(run: Run) -> None:
    """Saves the checkpoint of the best evaluation so far where none was due; the end has the model."""
    best = best_of(run.folder.evaluations) if run.is_main else None
    is_best = best is not None and best.step == run.done
    if run.done < run.steps and run.engine.any_rank(is_best) and not _is_due(run):
        _save_checkpoint(run)
