"""The training run inside a worker: steps, evaluations, checkpoints, and what is said about them.

It runs under a supervisor, which draws, or alone under `accelerate launch -m trainer`; it cannot tell.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from autotune.pieces import Costs
from autotune.plan import Plan
from autotune.quantity import finite
from trainer.adapters import default_learning_rate, described, export
from trainer.batches import Collator
from trainer.checkpoint import load_checkpoint, save_checkpoint
from trainer.engine import Engine, make_accelerator, precision
from trainer.evaluate import Answering, evaluate_with_answers, rehearse_evaluation
from trainer.evaluations import Progress, append, forget_later, read
from trainer.evaluations import as_record as evaluation_record
from trainer.feed import feed
from trainer.generate import WIDEST, rehearse_answers
from trainer.messages import Say
from trainer.metrics import as_record, sum_up
from trainer.model_card import CardFacts, write_card
from trainer.models import PRESETS, Loaded, load_model
from trainer.nodes import check_alike, shared_checkpoints
from trainer.order import GroupedSteps, PlainSteps, SampleOrder, StepOrder, count_steps
from trainer.plot import draw_loss
from trainer.rows import bundled
from trainer.run_file import save_run
from trainer.run_folder import RunFolder
from trainer.schedules import rate_share
from trainer.settings import TrainSettings
from trainer.steps import Steps
from trainer.store import TokenStore, open_store
from trainer.tokenise import Progress as Tokenised
from trainer.tracking import start_tracking, track
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
    answering: Answering | None = None
    """None where no evaluation answers anything."""
    progress: Progress = field(default_factory=Progress)
    """The evaluations so far, earlier parts of the run included; the same on every rank."""

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
    folder = RunFolder(Path(settings.output_dir))
    accelerator = make_accelerator(
        settings.workload, track=settings.track, tracking=folder.tracking
    )
    workload = settings.workload
    loaded = load_model(workload.model, dropout=workload.dropout, seed=workload.seed)

    def told(progress: Tokenised) -> None:
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
        run.answering = _rehearse_answers(run, run.eval_collator)
    run.progress = _earlier_progress(run)
    start_tracking(accelerator, settings, folder.tracking, done=run.done)
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
    if _gives_up(run):  # it was killed before its model was written
        return True
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
        if at_end or _evaluation_is_due(run):  # before the checkpoint, which goes on after it
            _evaluate(run)
            at_end = _gives_up(run) or at_end
            ended = time.perf_counter()
        if at_end:
            return True
        if _is_due(run) or stop:
            _save_checkpoint(run)
            ended = time.perf_counter()
        if stop:
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
        _draw(run)
        write_card(run.folder.path, _card_facts(run))
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
    track(run.engine.accelerator, "train", record)


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


def _rehearse_answers(run: Run, collator: Collator) -> Answering | None:
    """How evaluations answer rows, in memory that there is; None where they answer none."""
    settings, accelerator = run.settings, run.engine.accelerator
    rows = min(settings.generate_rows, len(collator.store))
    if rows == 0:
        return None
    longest = _longest_answer(run)
    share = -(-rows // accelerator.num_processes)
    size = rehearse_answers(
        run.engine, collator, most=min(share, settings.eval_batch or WIDEST), longest=longest
    )
    return Answering(rows=rows, size=size, longest=longest)


def _longest_answer(run: Run) -> int:
    """Tokens, the end included: what the user says, or what there is in the data."""
    stores = [c.store for c in (run.collator, run.eval_collator) if c is not None]
    return run.settings.max_new_tokens or max(store.longest()[1] for store in stores)


def _earlier_progress(run: Run) -> Progress:
    """What the main process finds in the folder of a resumed run: other nodes may not see it."""
    records = forget_later(run.folder.evaluations, run.done) if run.is_main else []
    (progress,) = broadcast_object_list([Progress.of(records)])
    assert isinstance(progress, Progress)
    return progress


def _evaluation_is_due(run: Run) -> bool:
    every = run.settings.eval_every
    return _ends_epoch(run) if every is None else run.done % every == 0


def _evaluate(run: Run) -> None:
    if run.eval_collator is None:
        return
    if run.is_main:
        answered = "" if run.answering is None else f", answering {run.answering.rows:,} of them"
        text = f"evaluating {len(run.eval_collator.store):,} rows{answered}"
        run.say({"type": "notice", "text": text})
    event = evaluate_with_answers(
        run.engine, run.eval_collator, step=run.done, size=run.eval_size, answering=run.answering
    )
    run.progress = run.progress.then(run.done, event.loss)
    record = evaluation_record(event)
    track(run.engine.accelerator, "evaluation", record)
    if run.is_main:
        append(run.folder.evaluations, record)
        run.say({"type": "evaluated", **record})


def _gives_up(run: Run) -> bool:
    """Whether the last evaluations were no better for as long as the run's patience lasts."""
    patience = run.settings.patience
    if patience is None or not run.engine.any_rank(run.progress.since_best >= patience):
        return False
    if run.is_main:
        run.say({"type": "notice", "text": run.progress.stop_words(run.done, run.steps)})
    return True


def _draw(run: Run) -> None:
    """The plot of the loss; whatever hinders it is told, since the training is done all the same."""
    try:
        draw_loss(run.folder.path)
    except Exception as error:  # noqa: BLE001
        run.say({"type": "notice", "text": f"the loss was not drawn: {error}"})


def _card_facts(run: Run) -> CardFacts:
    settings, codec = run.settings, run.loaded.codec
    model = settings.workload.model
    metrics, evaluations = read(run.folder.metrics), read(run.folder.evaluations)
    own = torch.cuda.get_device_name() if settings.workload.device == "cuda" else "CPU"
    return CardFacts(
        settings=settings,
        micro_batch=str(run.plan),
        accumulation=run.plan.accumulation,
        precision=precision(settings.workload),
        is_causal=codec.is_causal,
        templated=codec.templated,
        from_hub=model not in PRESETS and not Path(model).is_dir(),
        parameters=sum(p.numel() for p in run.engine.unwrapped.parameters()),
        rows=len(run.collator.store),
        eval_rows=None if run.eval_collator is None else len(run.eval_collator.store),
        steps=run.done,
        loss=metrics[-1]["loss"],
        peak=max(record["device_peak_bytes"] for record in metrics),
        device=", ".join(sorted(set(settings.device_names))) or own,
        max_new_tokens=_longest_answer(run),
        eos=codec.eos,
        pad=codec.pad,
        decoder_start=getattr(run.loaded.model.config, "decoder_start_token_id", None),
        evaluation=evaluations[-1] if evaluations else None,
    )
