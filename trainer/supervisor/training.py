"""Runs a training in worker processes: starts them, watches them, and halves the micro-batch when memory runs out.

It imports no torch: the supervisor outlives its workers.
"""

from dataclasses import replace
from typing import Any

from autotune.cause import Cause
from autotune.devices.budget import budgets
from autotune.errors import ChatlmError, DeviceError, OutOfMemory, ProfileError, WorkerError
from autotune.events import Notice, ProbeEnded, ProbeStarted
from autotune.plan import Plan
from autotune.trial import reevaluate, with_margins
from autotune.tuning.prober import Limits
from autotune.units import format_bytes
from autotune.verdict import Verdict
from autotune.workers.group import WorkerGroup
from autotune.workers.launch import worker_command, worker_environment
from trainer.config.settings import TrainSettings
from trainer.events import FromTrainer, Train, TrainingEnded
from trainer.supervisor.failure_advice import advice
from trainer.supervisor.interrupts import collected_interrupts
from trainer.supervisor.job import TrainJob
from trainer.supervisor.relay import TICK, ProfileMismatch, Relay


def run_training(job: TrainJob) -> TrainingEnded:
    """Trains; first probes the profile's size once if its figures may not hold for this run.

    Raises:
        ProfileError: the size exceeds the target on this machine.
        OutOfMemory, WorkerError, ChatlmError: as `supervise` does.
    """
    try:
        return finish(job, is_compared=True)
    except ProfileMismatch as mismatch:
        sizes = job.settings.plan(job.settings.world_size)
        measured = f"profile {job.settings.profile} was measured in other conditions ({mismatch})"
        job.emit(Notice(text=f"{measured}: probing micro-batch {sizes} once"))
        probe_again(job)
        # the memory fractions of source and target were measured elsewhere too
        elsewhere = replace(job, settings=replace(job.settings, memory_fractions=None))
        return finish(elsewhere, is_compared=False)


def finish(job: TrainJob, *, is_compared: bool) -> TrainingEnded:
    """Trains to the end. A run that ran out of memory after a step resumes with half the micro-batch.

    The optimizer steps stay the same. A run that runs out of memory before its first step fails.

    Raises:
        ProfileMismatch, OutOfMemory, WorkerError, ChatlmError: as `supervise` does; KeyboardInterrupt after Ctrl-C.
    """
    is_under_way = False
    while True:
        try:
            return supervise(job, is_compared=is_compared)
        except OutOfMemory as ended:
            error = ended
            is_under_way |= isinstance(error, RanOutOfMemory)
            if not is_under_way:
                raise
        except DeviceError as full:  # others hold more than the target leaves
            if not is_under_way:
                raise
            hints = filter(None, [full.hint, "the same command resumes the run"])
            raise DeviceError(full.what, "; ".join(hints)) from full
        finer = halved(job.settings)
        if finer == replace(job.settings, fresh=False):
            raise error
        job, is_compared = replace(job, settings=finer), False
        job.emit(
            Notice(
                text=f"{error.what}; resuming from the last checkpoint, or from the start without one, "
                f"with micro-batch {finer.plan(finer.world_size)}"
            )
        )


def halved(settings: TrainSettings) -> TrainSettings:
    """The same run with half the micro-batch and half the evaluation batch; it resumes."""
    plan = Plan(
        micro_batch=[max(1, size // 2) for size in settings.plan(settings.world_size).sizes],
        effective_batch=settings.effective_batch,
        world_size=settings.world_size,
    )
    return replace(
        settings,
        micro_batch=plan.micro_batch,
        micro_batch_sizes=None if plan.is_even else plan.sizes,
        eval_batch=None if settings.eval_batch is None else max(1, settings.eval_batch // 2),
        fresh=False,
    )


def probe_again(job: TrainJob) -> None:
    """Probes the run's size; raises ProfileError when it exceeds the profile's target."""
    settings, memory = job.settings, job.profile.memory
    size = settings.micro_batch
    limits = Limits(target=memory.target_vram or 1.0, target_ram=memory.target_ram or 1.0)
    effective = {"effective": settings.effective_batch, "effective_fixed": True}
    workload = {**settings.workload.as_json(), **effective}
    with job.prober("trainer.workload:build", limits, workload) as prober:
        prober.open()
        job.emit(ProbeStarted(size=size, low=0, high=size + 1))
        trial = prober.probe(settings.plan(settings.world_size).sizes)
        trial = reevaluate(trial, with_margins(prober.budgets, [trial])) or trial
        job.emit(ProbeEnded(trial=trial, low=0, high=size + 1))
        budget = prober.budgets[trial.tightest].budget
    if trial.verdict is not Verdict.FITS:
        peak = "out of memory" if trial.peak is None else f"peak {format_bytes(trial.peak)}"
        raise ProfileError(
            f"profile {settings.profile} does not hold its target here: micro-batch {trial.size} is "
            f"{trial.verdict} ({peak}, budget {format_bytes(budget)})",
            "use a smaller --micro-batch, or run `chatlm autotune` again",
        )


class RanOutOfMemory(OutOfMemory):
    """Memory ran out after a step: a resume has less to do."""


def supervise(job: TrainJob, *, is_compared: bool) -> TrainingEnded:
    """Runs the training in worker processes and returns how it ended.

    After Ctrl-C the workers finish their step and save a checkpoint; Ctrl-C again, a second later or more,
    ends them at once.

    Raises:
        ProfileMismatch: `is_compared`, and the profile's figures may not hold for this run.
        RanOutOfMemory: memory ran out after a step.
        OutOfMemory: memory ran out before.
        WorkerError: a worker crashed or was killed.
        ChatlmError: a worker refused its settings or data.
    """
    group = job.devices.group
    baseline = group.read_baseline()
    known = budgets(baseline, job.profile.memory.target_vram or 1.0)
    settings = replace(
        job.settings,
        workload=replace(job.settings.workload, memory_limit=group.memory_cap(baseline)),
        others=tuple(reading.used for reading in baseline) if group.kind == "cuda" else (),
        budgets=tuple(device.budget for device in known),
        device_names=tuple(device.name for device in known),
    )
    job = replace(job, settings=settings)
    with collected_interrupts() as interrupts:
        try:
            with WorkerGroup[FromTrainer](
                worker_command("trainer", settings.world_size),
                messages=FromTrainer,
                environment=worker_environment(group.kind, settings.world_size),
                log_path=job.log_path,
                host=job.host,
                inherited=job.lock,
            ) as workers:
                relay = Relay(job, workers, known, is_compared)
                for messages in workers.watch(TICK, Train(settings=settings.as_json())):
                    relay.take(messages)
                    if relay.ended is not None:
                        return relay.ended
                    if len(interrupts) > relay.stops:
                        relay.stop()
                raise explain_exit(workers)
        except ProfileMismatch as mismatch:
            if interrupts:  # nothing is begun anew
                raise KeyboardInterrupt from mismatch
            raise
        except OutOfMemory as error:
            if interrupts:
                job.emit(Notice(text=str(error)))
                raise KeyboardInterrupt from error
            if relay.is_under_way:
                raise RanOutOfMemory(error.what, error.hint) from error
            raise


def explain_exit(workers: WorkerGroup[Any]) -> ChatlmError:
    """The error for workers that ended without a message."""
    failure = workers.how_it_ended()
    resume = "the same command resumes from the last checkpoint, if there is one"
    if failure.cause is Cause.HOST_OOM:
        return OutOfMemory(
            "the kernel killed a worker: host memory ran out",
            f"use fewer processes or a smaller --micro-batch; {resume}",
        )
    known = advice(workers.log_tail(), exit_code=failure.exit_code)
    return WorkerError(
        f"a training worker {failure.detail}",
        "; ".join(filter(None, [f"its log is {workers.log_path}", known, resume])),
    )
