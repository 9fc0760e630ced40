"""The training run inside a worker: steps, evaluations, checkpoints, and what is said about them.

It runs under a supervisor, which draws, or alone under `accelerate launch -m trainer`; it cannot tell.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from autotune.pieces import Costs
from autotune.plan import Plan
from autotune.quantity import finite
from trainer.adapters import default_learning_rate, described, export
from trainer.batches import Collator
from trainer.checkpoint import load_checkpoint, save_checkpoint
from trainer.engine import Engine, make_accelerator, precision
from trainer.evaluate import evaluate, rehearse_evaluation
from trainer.feed import feed
from trainer.messages import Say
from trainer.metrics import as_record, sum_up
from trainer.models import Loaded, load_model
from trainer.nodes import check_alike, shared_checkpoints
from trainer.order import GroupedSteps, PlainSteps, SampleOrder, StepOrder, count_steps
from trainer.rows import bundled
from trainer.run_file import save_run
from trainer.run_folder import RunFolder
from trainer.schedules import rate_share
from trainer.settings import TrainSettings
from trainer.steps import Steps
from trainer.store import TokenStore, open_store
from trainer.tokenise import Progress
from trainer.workload import fingerprint_facts


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

    def told(progress: Progress) -> None:
        if accelerator.is_main_process:
            say({"type": "tokenising", **asdict(progress)})

    def opened(files: tuple[str, ...]) -> TokenStore:
        return open_store(
            files,
            loaded.codec,
            max_source=workload.max_source_length,
            max_target=workload.max_target_length,
            progress=told,
            should_stop=should_stop,
        )

    store = opened(workload.data or (bundled("train"),))  # all ranks at once: one of them writes
    eval_files = settings.eval_data or (() if workload.data else (bundled("valid"),))
    eval_store = opened(eval_files) if eval_files else None
    check_alike(accelerator, settings, (store, eval_store))
    folder = RunFolder(Path(settings.output_dir))
    if accelerator.is_main_process:
        say({"type": "built", "facts": fingerprint_facts(loaded, store, accelerator.num_processes)})
        confirm()
        folder.check_space(_disk_need(loaded, settings))
        folder.claim(settings.identity(), fresh=settings.fresh)
    accelerator.wait_for_everyone()
    default = default_learning_rate(loaded.learning_rate, workload)
    rate = (settings.learning_rate or default) * settings.rate_scale
    if accelerator.is_main_process:
        save_run(folder.path, settings, rate)
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
        learning_rate=rate,
    )
    if checkpoints := shared_checkpoints(accelerator, folder):
        run.done = load_checkpoint(checkpoints[-1], engine)  # first: beside nothing to be replaced
    else:
        engine.make_resident(collator.worst(1))
    engine.rehearse([collator.worst(run.own_size)] * min(2, run.plan.accumulation))
    if run.eval_collator is not None:
        rehearse_evaluation(engine, run.eval_collator, size=run.eval_size)
    if run.is_main:
        _forget_later_metrics(run)
        _say_started(run, store)
    return run


def take_steps(run: Run) -> bool:
    """Optimizer steps until the run is complete; False when it was asked to stop before."""
    accelerator = run.engine.accelerator
    steps = Steps(
        run.collator,
        step_order(run),
        run.plan,
        costs=Costs(
            longest=run.collator.longest(),
            shares=run.settings.shares,
            overhead=run.settings.overhead,
        ),
        rank=accelerator.process_index,
    )
    ended = time.perf_counter()
    for step in feed(steps, range(run.done, run.steps), run.settings.loader_workers):
        torch.manual_seed(_step_seed(run))
        rate = run.learning_rate * rate_share(
            run.settings.schedule, run.done, run.steps, run.settings.warmup
        )
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
            skipped=run.engine.skipped,
            learning_rate=rate,
            seconds=now - ended,
        )
        _log(run, record)
        ended, stop = now, summed.stop
        at_end = run.done == run.steps
        if _is_due(run) or (stop and not at_end):
            _save_checkpoint(run)
            ended = time.perf_counter()
        if at_end or _ends_epoch(run):
            _evaluate(run)
            ended = time.perf_counter()
        if stop and not at_end:
            return False
    return True


def step_order(run: Run) -> StepOrder:
    """Which samples each step of the run sees."""
    collator, effective = run.collator, run.plan.effective_batch
    stream = SampleOrder(len(collator.store), run.settings.workload.seed)
    if not run.settings.length_grouping:
        return PlainSteps(stream, effective)
    return GroupedSteps(stream, effective, steps=run.steps, lengths=collator.lengths)


def save_model(run: Run) -> None:
    """Writes the final model and tokenizer, as `from_pretrained` reads them."""
    if run.is_main:
        model = run.engine.unwrapped
        model.config.use_cache = True
        export(model, run.engine.adapter, run.folder.path)
        run.loaded.codec.tokenizer.save_pretrained(run.folder.path)
        run.folder.finish()
    run.engine.accelerator.wait_for_everyone()


def _disk_need(loaded: Loaded, settings: TrainSettings) -> int:
    """Bytes of the final model, the checkpoints that are kept and the one being written."""
    parameters = sum(p.numel() for p in loaded.model.parameters())
    return 4 * parameters * (1 + 3 * (settings.keep_checkpoints + 1))


def _say_started(run: Run, store: TokenStore) -> None:
    settings = run.settings
    notice = store.truncation_notice(
        settings.workload.max_source_length, settings.workload.max_target_length
    )
    if notice:
        run.say({"type": "notice", "text": notice})
    if partly := described(run.engine.unwrapped):
        run.say({"type": "notice", "text": partly})
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


def _forget_later_metrics(run: Run) -> None:
    """After a resume: drops the lines of steps that are done again."""
    if run.folder.metrics.exists():
        lines = run.folder.metrics.read_text().splitlines()[: run.done]
        kept = run.folder.path / ".metrics.jsonl"
        kept.write_text("".join(f"{line}\n" for line in lines))
        kept.replace(run.folder.metrics)


def _step_seed(run: Run) -> int:
    """Random numbers (dropout) of a step follow from its number: a resume needs no saved state."""
    rank: int = run.engine.accelerator.process_index
    return ((run.settings.workload.seed * 1_000_003 + run.done) * 1009 + rank) % 2**63


def _log(run: Run, record: Mapping[str, Any]) -> None:
    run.peak = max(run.peak, record["device_peak_bytes"])
    run.loss = record["loss"]
    if run.is_main:
        with run.folder.metrics.open("a") as file:
            file.write(json.dumps(finite(record), allow_nan=False) + "\n")
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
    if run.is_main:
        path = save_checkpoint(run.folder, run.engine, run.done, keep=run.settings.keep_checkpoints)
        run.say({"type": "checkpoint", "step": run.done, "path": str(path)})
    run.engine.accelerator.wait_for_everyone()


def _evaluate(run: Run) -> None:
    if run.eval_collator is None:
        return
    if run.is_main:
        run.say({"type": "notice", "text": f"evaluating {len(run.eval_collator.store):,} rows"})
    loss = evaluate(run.engine, run.eval_collator, size=run.eval_size)
    if run.is_main:
        run.say({"type": "evaluated", "step": run.done, "loss": loss})
