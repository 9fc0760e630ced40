"""Between a tuning and the profile that records it, and between a profile and today's machine."""

from typing import Any

from autotune.errors import NothingFits, ProfileError
from autotune.launch import memory_environment
from autotune.plan import Plan, choose_effective
from autotune.prober import Limits
from autotune.quantity import format_bytes
from autotune.trial import DeviceBudget, Trial
from autotune.tuning import Outcome
from autotune.verdict import Verdict
from profiles import Profile
from profiles.schema import Batch, Fingerprint, Memory, Run, TrialRow
from trainer.devices import Devices
from trainer.settings import TrainSettings, WorkloadSettings

MOST = 4096
"""The largest micro-batch that is tried unless --max-batch says otherwise."""


def ceiling(rows: int, *, world_size: int, effective: int | None, max_batch: int | None) -> int:
    """The largest size worth trying: the data has no more, and a step's share is no larger."""
    share = rows if effective is None else -(-effective // world_size)
    return max(1, min(max_batch or MOST, rows, share))


def make_profile(
    outcome: Outcome,
    *,
    limits: Limits,
    settings: WorkloadSettings,
    devices: Devices,
    wanted_effective: int,
    effective_is_fixed: bool,
    loader_workers: int,
    vram_limit: int | None,
) -> Profile:
    """The profile of an outcome that has an answer."""
    trial = outcome.answer
    assert trial is not None
    plan = Plan(
        micro_batch=trial.size,
        effective_batch=choose_effective(
            trial.size,
            world_size=devices.world_size,
            wanted=wanted_effective,
            fixed=effective_is_fixed,
        ),
        world_size=devices.world_size,
    )
    tightest = trial.budgets[trial.tightest]
    return Profile(
        schema=1,
        interrupted=outcome.interrupted,
        batch=Batch(
            micro_batch_size=plan.micro_batch,
            gradient_accumulation_steps=plan.accumulation,
            effective_batch_size=plan.effective_batch,
        ),
        memory=Memory(
            target_vram=limits.target,
            target_ram=limits.target_ram,
            vram_limit_bytes=vram_limit,
            others_bytes=tightest.others,
            budget_bytes=tightest.budget,
            peak_bytes=trial.peak,
            host_peak_bytes=trial.host_peak,
        ),
        run=Run(
            model=settings.model,
            data=list(settings.data) or None,
            precision=outcome.facts["precision"],
            gradient_checkpointing=settings.gradient_checkpointing,
            max_source_length=settings.max_source_length,
            max_target_length=settings.max_target_length,
            optimizer="adamw",
            loader_workers=loader_workers,
            environment=memory_environment(devices.cards.kind),
        ),
        fingerprint=fingerprint(outcome.facts["fingerprint"], devices),
        trial=[_row(t) for t in outcome.trials],
    )


def fingerprint(facts: dict[str, Any], devices: Devices) -> Fingerprint:
    """What a worker found, and what the supervisor knows of the devices."""
    survey = devices.cards.read({})
    return Fingerprint(
        **facts,
        devices=[reading.name for reading in survey],
        device_bytes=[reading.total for reading in survey],
        driver=devices.driver,
    )


def differences(
    profile: Profile,
    found: Fingerprint,
    settings: TrainSettings,
    budgets: tuple[DeviceBudget, ...],
) -> list[str]:
    """Why the profile's figures may not hold for this run, in words; empty when they do.

    Presets measured nothing, so nothing differs; shorter sequences need no more memory.
    """
    measured, workload = profile.fingerprint, settings.workload
    if measured.model is None:
        return []
    different = []
    for name in ("model", "devices", "device_bytes", "driver", "torch", "world_size"):
        old, new = getattr(measured, name), getattr(found, name)
        if old != new:
            different.append(f"{name.replace('_', ' ')} {_said(old)}, now {_said(new)}")
    for name in ("longest_source", "longest_target"):
        old, new = getattr(measured, name), getattr(found, name)
        if old is None or new is None or new > old:
            different.append(f"{name.replace('_', ' ')} {old} tokens, now {new}")
    if workload.precision not in ("auto", profile.run.precision):
        different.append(f"precision {profile.run.precision}, now {workload.precision}")
    if settings.micro_batch > profile.batch.micro_batch_size:
        tuned_size = profile.batch.micro_batch_size
        different.append(f"micro-batch {tuned_size}, now {settings.micro_batch}")
    if profile.run.environment != memory_environment(workload.device):
        different.append("other allocator settings")
    peak = profile.memory.peak_bytes or 0
    different += [
        f"peak {format_bytes(peak)}, now a budget of {format_bytes(budget.budget)}"
        for budget in budgets
        if peak > budget.budget
    ]
    return different


def check_still_fits(trial: Trial, budget: int, name: str) -> None:
    """Raises ProfileError when a profile's size, probed again, does not hold its target."""
    if trial.verdict is not Verdict.FITS:
        peak = "out of memory" if trial.peak is None else f"peak {format_bytes(trial.peak)}"
        raise ProfileError(
            f"profile {name} does not hold its target here: micro-batch {trial.size} is "
            f"{trial.verdict} ({peak}, budget {format_bytes(budget)}); use a smaller --micro-batch, "
            f"or run `chatlm autotune` again"
        )


def nothing_fits(outcome: Outcome) -> NothingFits:
    """What to say when not even one sequence per device holds the target."""
    trial = min(outcome.trials, key=lambda t: t.size)
    budget = trial.budgets[trial.tightest]
    peak = "ran out of memory" if trial.peak is None else f"peaks at {format_bytes(trial.peak)}"
    reason = f" ({trial.reason})" if trial.reason else ""
    return NothingFits(
        f"nothing fits: micro-batch {trial.size} {peak}{reason}, the budget of {budget.name} is "
        f"{format_bytes(budget.budget)}, with {format_bytes(budget.others)} of "
        f"{format_bytes(budget.total)} held by others; try a higher --target-vram, a larger "
        f"--vram-limit, shorter --max-source-length and --max-target-length, or a smaller --model"
    )


def as_json(outcome: Outcome, profile: Profile, path: str, limits: Limits) -> dict[str, Any]:
    """The document that `chatlm autotune --json` prints."""
    trial = outcome.answer
    assert trial is not None
    return {
        "schema": 1,
        "profile": path,
        "micro_batch_size": profile.batch.micro_batch_size,
        "effective_batch_size": profile.batch.effective_batch_size,
        "gradient_accumulation_steps": profile.batch.gradient_accumulation_steps,
        "target": limits.target,
        "interrupted": outcome.interrupted,
        "devices": [
            {
                "name": budget.name,
                "total_bytes": budget.total,
                "others_bytes": budget.others,
                "budget_bytes": budget.budget,
                "peak_bytes": peak,
            }
            for budget, peak in zip(trial.budgets, trial.device_peaks, strict=True)
        ],
        "trials": [_row(t).model_dump(exclude_none=False) for t in outcome.trials],
        "seconds": outcome.seconds,
    }


def _row(trial: Trial) -> TrialRow:
    return TrialRow(
        size=trial.size,
        verdict=trial.verdict.value,
        peak_bytes=trial.peak,
        seconds=trial.seconds,
        samples_per_second=trial.samples_per_second,
        tokens_per_second=trial.tokens_per_second,
        reason=trial.reason,
    )


def _said(value: Any) -> str:
    if isinstance(value, list):
        return " + ".join(_said(v) for v in value)
    return format_bytes(value) if isinstance(value, int) and value > 10**6 else str(value)
