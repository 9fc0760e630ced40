"""`chatlm autotune` outside the workers: runs a tuning and records it as a profile."""

import functools
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import profiles
from autotune.devices.lock import locked
from autotune.events import Notice, TuningEnded
from autotune.plan import Plan, choose_effective
from autotune.trial import MARGIN_SPREADS, Trial
from autotune.tuning.extras import tune_evaluation, tune_loaders
from autotune.tuning.loop import Extras, Outcome, tune
from autotune.tuning.prober import WorkerProber
from autotune.workers.launch import memory_environment
from profiles import Profile
from profiles.schema import BatchSection, MemorySection, RunSection, TrialRow
from profiles.store import free_path
from trainer.config.settings import COLUMNS
from trainer.supervisor.fingerprint import fingerprint, previous_sizes, what_is_trained
from trainer.supervisor.interrupts import held_interrupts
from trainer.supervisor.job import TuneJob

MAX_MICRO_BATCH = 4096
"""The largest micro-batch that is tried unless --max-batch says otherwise."""
HINTS = (
    "try a higher --target-vram, a larger --vram-limit, shorter --max-source-length and "
    "--max-target-length, or a smaller --model",
    "try a higher --target-ram, or end what else uses host memory",
)
"""What to try when nothing fits: the device, or the host's memory."""
ROOMY = 1.1
"""The estimated capacity is given if it is at least this many times the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """A tuning that has an answer, and its profile as it was written."""

    job: TuneJob
    outcome: Outcome
    profile: Profile
    path: Path

    @property
    def estimated_capacity(self) -> int | None:
        """Sequences per device that a line through the answer predicts to fit; that size did not run.

        None unless the effective batch, not memory, limited the search, and the answer is well below.
        """
        trial, effective = self.outcome.answer, self.job.options.effective_batch
        if trial is None or trial.static_bytes is None or not trial.activation_peak:
            return None
        if effective is None or not trial.is_even:
            return None
        if trial.size < -(-effective // self.job.devices.world_size):
            return None
        room = trial.budgets[trial.tightest].budget - trial.static_bytes
        each = (trial.activation_peak - trial.static_bytes) / trial.size
        size = int(room / each) if each > 0 else 0
        return size if size >= ROOMY * trial.size else None


def run_tuning(job: TuneJob) -> Tuned:
    """Tunes and writes the profile; Ctrl-C ends the search with the best size so far.

    Once the search is over, Ctrl-C waits until the profile is written.

    Raises:
        NothingFits: not even one sequence per device holds the target.
        KeyboardInterrupt: interrupted before any size fitted.
        ChatlmError: the workload was refused, its workers fail, or the profile cannot be written.
    """
    options, devices = job.options, job.devices
    settings = {
        **job.settings.as_json(),
        "effective": job.effective_batch,
        "effective_fixed": job.is_fixed,
        "eval_data": options.eval_data or (),
    }
    with (
        locked(devices.shared, notify=lambda text: job.emit(Notice(text=text))),
        job.prober(job.workload, job.limits, settings) as prober,
        ExitStack() as saving,
    ):

        def emit(event: object) -> None:
            if isinstance(event, TuningEnded):
                saving.enter_context(held_interrupts())
            job.emit(event)

        outcome = tune(
            prober,
            ceiling=lambda workload_info: ceiling(
                workload_info["rows"],
                world_size=devices.world_size,
                effective=options.effective_batch,
                max_batch=options.max_batch,
                per_device=options.per_device,
            ),
            prefer=options.prefer,
            guess=functools.partial(
                previous_sizes, job.path, job.limits, job.vram_limit, devices, job.settings
            ),
            per_device=options.per_device,
            most=options.effective_batch,
            after=functools.partial(measure_extras, job, prober),
            emit=emit,
        )
        if outcome.answer is None:
            raise KeyboardInterrupt if outcome.interrupted else outcome.nothing_fits(*HINTS)
        profile = make_profile(outcome, job)
        path = free_path(job.path) if outcome.interrupted else job.path
        profiles.save(profile, path)  # before the workers are ended, which Ctrl-C may interrupt
    return Tuned(job=job, outcome=outcome, profile=profile, path=path)


def ceiling(
    rows: int,
    *,
    world_size: int,
    effective: int | None,
    max_batch: int | None,
    per_device: bool = False,
) -> int:
    """The largest micro-batch worth trying: no more than the rows, or than a rank's share of a step.

    With `per_device` a rank may take all of a step but one sequence for each other rank.
    """
    if effective is None:
        share = rows
    else:
        share = effective - world_size + 1 if per_device else -(-effective // world_size)
    return max(1, min(max_batch or MAX_MICRO_BATCH, rows, share))


def measure_extras(job: TuneJob, prober: WorkerProber, trial: Trial) -> Extras:
    """The memory fractions, the number of loader processes, and with --eval-data the evaluation batch."""
    size = fraction_size(min(trial.sizes), job.devices.group.kind)
    fractions = prober.measure_memory_fractions(size)
    eval_batch = None
    if job.options.eval_data is not None:
        job.emit(Notice(text="tuning the evaluation batch (forward pass only)"))
        eval_batch = tune_evaluation(prober, trial)
    host = job.host.read()
    assert trial.samples_per_second is not None
    loaders = tune_loaders(
        prober,
        trial.size,
        busy=_effective_batch(job, trial) / trial.samples_per_second,
        ranks=job.devices.world_size,
        room=int(job.limits.target_ram * host.total) - host.used,
    )
    return Extras(eval_batch=eval_batch, loaders=loaders, memory_fractions=fractions)


def fraction_size(size: int, kind: str) -> int:
    """How many sequences the memory fractions are measured with, on `cuda` or `cpu`.

    On a GPU the answer itself: a chunk of the loss has a fixed size there, and its share is larger beside fewer
    sequences. On a CPU, where a step takes seconds, a quarter: the fractions are within 2 % of those of half
    (t5-8m at 184 sequences, 256 + 256 and 256 + 32 tokens; chatlm-tiny at 199). At least eight, or all of a
    smaller answer, since noise is large beside few.
    """
    return size if kind == "cuda" else min(size, max(8, size // 4))


def make_profile(outcome: Outcome, job: TuneJob) -> Profile:
    """The profile of an outcome that has an answer."""
    trial, extras = outcome.answer, outcome.extras
    assert trial is not None
    settings = job.settings.located
    plan = Plan(
        micro_batch=trial.sizes,
        effective_batch=_effective_batch(job, trial),
        world_size=job.devices.world_size,
    )
    tightest = trial.budgets[trial.tightest]
    fractions = extras.memory_fractions
    return Profile(
        schema=1,
        interrupted=outcome.interrupted,
        batch=BatchSection(
            micro_batch_size=plan.micro_batch,
            micro_batch_sizes=None if plan.is_even else list(plan.sizes),
            gradient_accumulation_steps=plan.accumulation,
            effective_batch_size=plan.effective_batch,
            base_effective_batch_size=job.effective_batch,
            eval_batch_size=extras.eval_batch,
        ),
        memory=MemorySection(
            target_vram=job.limits.target,
            target_ram=job.limits.target_ram,
            vram_limit_bytes=job.vram_limit,
            others_bytes=tightest.others,
            budget_bytes=tightest.budget,
            hard_limit_bytes=tightest.hard_limit,
            peak_bytes=trial.peak,
            noise_bytes=tightest.margin // MARGIN_SPREADS,
            host_peak_bytes=trial.host_peak,
            shares=None if fractions is None else list(fractions),
        ),
        run=RunSection(
            model=settings.model,
            data=list(settings.data) or None,
            precision=outcome.workload_info["precision"],
            max_source_length=settings.max_source_length,
            max_target_length=settings.max_target_length,
            **{name: getattr(settings, name) for name in COLUMNS},
            **what_is_trained(settings),
            loader_workers=(
                job.base.run.loader_workers if extras.loaders is None else extras.loaders
            ),
            environment=memory_environment(job.devices.group.kind),
        ),
        fingerprint=fingerprint(outcome.workload_info["fingerprint"], job.devices),
        trial=[_row(t) for t in outcome.trials],
    )


def _effective_batch(job: TuneJob, trial: Trial) -> int:
    return choose_effective(
        trial.sizes,
        world_size=job.devices.world_size,
        wanted=job.effective_batch,
        fixed=job.is_fixed,
    )


def as_json(tuned: Tuned) -> dict[str, Any]:
    """The document that `chatlm autotune --json` prints."""
    outcome, profile = tuned.outcome, tuned.profile
    trial = outcome.answer
    assert trial is not None
    knee = profile.knee()
    return {
        "schema": 1,
        "profile": str(tuned.path),
        "micro_batch_size": profile.batch.micro_batch_size,
        "effective_batch_size": profile.batch.effective_batch_size,
        "gradient_accumulation_steps": profile.batch.gradient_accumulation_steps,
        "target": tuned.job.limits.target,
        "interrupted": outcome.interrupted,
        "devices": [
            {
                "name": budget.name,
                "total_bytes": budget.total,
                "others_bytes": budget.others,
                "budget_bytes": budget.budget,
                "peak_bytes": device.peak,
                "margin_bytes": budget.margin,
                "context_bytes": device.context,
                "reserved_bytes": device.reserved,
                "allocated_bytes": device.allocated,
                "libraries_bytes": device.outside.libraries,
                "mapped_bytes": device.outside.mapped,
            }
            for budget, device in zip(trial.budgets, trial.measured, strict=True)
        ],
        "trials": [row.model_dump() for row in profile.trial],
        "seconds": outcome.seconds,
        "micro_batch_sizes": list(trial.sizes),
        "eval_batch_size": profile.batch.eval_batch_size,
        "loader_workers": profile.run.loader_workers,
        "knee": None if knee is None else knee.size,
        "would_hold": tuned.estimated_capacity,
    }


def _row(trial: Trial) -> TrialRow:
    return TrialRow(
        size=trial.size,
        sizes=None if trial.is_even else list(trial.sizes),
        verdict=trial.verdict,
        peak_bytes=trial.peak,
        seconds=trial.seconds,
        samples_per_second=trial.samples_per_second,
        tokens_per_second=trial.tokens_per_second,
        speed_spread=trial.speed_spread,
        reason=trial.reason,
    )
