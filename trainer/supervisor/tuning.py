"""Between a tuning and the profile that records it, and between a profile and today's machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from autotune.devices.selection import DeviceSelection
from autotune.errors import NothingFits, ProfileError
from autotune.events import Notice
from autotune.plan import Plan, choose_effective
from autotune.trial import DeviceBudget, Trial
from autotune.tuning.extras import tune_evaluation, tune_loaders
from autotune.tuning.loop import Extras, Outcome
from autotune.tuning.per_device import Sizes
from autotune.tuning.prober import Limits, Prober
from autotune.units import format_bytes
from autotune.verdict import Verdict
from autotune.workers.launch import memory_environment
from profiles import Profile, load
from profiles.schema import BatchSection, Fingerprint, MemorySection, RunSection, TrialRow
from trainer.config.settings import WHAT_IS_TRAINED, TrainSettings, WorkloadSettings

MOST = 4096
"""The largest micro-batch that is tried unless --max-batch says otherwise."""
ROOMY = 1.1
"""Room for less than this many times the answer is not worth a word."""


def ceiling(
    rows: int,
    *,
    world_size: int,
    effective: int | None,
    max_batch: int | None,
    per_device: bool = False,
) -> int:
    """The largest size worth trying: the data has no more, and a step's share is no larger.

    Unequal ranks take unequal shares: all but one sequence for each of the others at most.
    """
    if effective is None:
        share = rows
    else:
        share = effective - world_size + 1 if per_device else -(-effective // world_size)
    return max(1, min(max_batch or MOST, rows, share))


def what_is_trained(values: RunSection | WorkloadSettings) -> dict[str, Any]:
    """The choices, besides model, lengths and precision, that a step's memory depends on."""
    chosen = {name: getattr(values, name) for name in WHAT_IS_TRAINED}
    return {**chosen, "lora_targets": list(chosen["lora_targets"])}


def previous_sizes(
    path: Path,
    limits: Limits,
    vram_limit: int | None,
    devices: DeviceSelection,
    settings: WorkloadSettings,
) -> Callable[[dict[str, Any]], Sizes | None]:
    """From a worker's facts the sizes that an earlier tuning of the very same found, or None."""

    def guess(workload_info: dict[str, Any]) -> Sizes | None:
        try:
            profile = load(str(path))
        except ProfileError:
            return None
        memory, batch = profile.memory, profile.batch
        is_same = (
            not profile.interrupted
            and profile.fingerprint == fingerprint(workload_info["fingerprint"], devices)
            and profile.run.precision == workload_info["precision"]
            and profile.run.environment == memory_environment(devices.group.kind)
            and what_is_trained(profile.run) == what_is_trained(settings)
            and (memory.target_vram, memory.target_ram, memory.vram_limit_bytes)
            == (limits.target, limits.target_ram, vram_limit)
        )
        sizes = batch.micro_batch_sizes or [batch.micro_batch_size] * devices.world_size
        return tuple(sizes) if is_same else None

    return guess


def measure_extras(
    prober: Prober, trial: Trial, *, effective: int, fixed: bool, evaluates: bool
) -> Extras:
    """The evaluation batch, where there is something to evaluate, loader processes, and shares."""
    shares = prober.measure_memory_fractions(trial.size)
    eval_batch = None
    if evaluates:
        prober.emit(Notice(text="looking for the evaluation batch, forward alone"))
        eval_batch = tune_evaluation(prober, trial)
    ranks = prober.spec.world_size
    samples = choose_effective(trial.sizes, world_size=ranks, wanted=effective, fixed=fixed)
    host = prober.host.read()
    assert trial.samples_per_second is not None
    loaders = tune_loaders(
        prober,
        trial.size,
        busy=samples / trial.samples_per_second,
        ranks=ranks,
        room=int(prober.limits.target_ram * host.total) - host.used,
    )
    return Extras(eval_batch=eval_batch, loaders=loaders, memory_fractions=shares)


def make_profile(
    outcome: Outcome,
    *,
    limits: Limits,
    settings: WorkloadSettings,
    devices: DeviceSelection,
    base: Profile,
    effective: int | None,
    vram_limit: int | None,
) -> Profile:
    """The profile of an outcome that has an answer; `effective` is the user's own choice, if any."""
    trial = outcome.answer
    assert trial is not None
    wanted = effective or base.batch.effective_batch_size
    plan = Plan(
        micro_batch=trial.sizes,
        effective_batch=choose_effective(
            trial.sizes,
            world_size=devices.world_size,
            wanted=wanted,
            fixed=effective is not None,
        ),
        world_size=devices.world_size,
    )
    tightest = trial.budgets[trial.tightest]
    return Profile(
        schema=1,
        interrupted=outcome.interrupted,
        batch=BatchSection(
            micro_batch_size=plan.micro_batch,
            micro_batch_sizes=None if plan.is_even else list(plan.sizes),
            gradient_accumulation_steps=plan.accumulation,
            effective_batch_size=plan.effective_batch,
            base_effective_batch_size=wanted,
            eval_batch_size=outcome.extras.eval_batch,
        ),
        memory=MemorySection(
            target_vram=limits.target,
            target_ram=limits.target_ram,
            vram_limit_bytes=vram_limit,
            others_bytes=tightest.others,
            budget_bytes=tightest.budget,
            hard_limit_bytes=tightest.hard_limit,
            peak_bytes=trial.peak,
            host_peak_bytes=trial.host_peak,
            shares=None
            if outcome.extras.memory_fractions is None
            else list(outcome.extras.memory_fractions),
        ),
        run=RunSection(
            model=settings.model,
            data=list(settings.data) or None,
            precision=outcome.workload_info["precision"],
            max_source_length=settings.max_source_length,
            max_target_length=settings.max_target_length,
            **what_is_trained(settings),
            loader_workers=(
                base.run.loader_workers
                if outcome.extras.loaders is None
                else outcome.extras.loaders
            ),
            environment=memory_environment(devices.group.kind),
        ),
        fingerprint=fingerprint(outcome.workload_info["fingerprint"], devices),
        trial=[_row(t) for t in outcome.trials],
    )


def estimated_capacity(outcome: Outcome, effective: int | None, world_size: int) -> int | None:
    """About how many sequences the devices had room for, where the effective batch was the bound.

    By the line through what is resident and the answer's forward and backward: nothing that ran.
    """
    trial = outcome.answer
    if (
        trial is None
        or trial.static_bytes is None
        or not trial.activation_peak
        or effective is None
    ):
        return None
    if not trial.is_even or trial.size < -(-effective // world_size):
        return None
    room = trial.budgets[trial.tightest].budget - trial.static_bytes
    each = (trial.activation_peak - trial.static_bytes) / trial.size
    size = int(room / each) if each > 0 else 0
    return size if size >= ROOMY * trial.size else None


def fingerprint(workload_info: dict[str, Any], devices: DeviceSelection) -> Fingerprint:
    """What a worker found, and what the supervisor knows of the devices."""
    baseline = devices.group.read({})
    return Fingerprint(
        **workload_info,
        devices=[reading.name for reading in baseline],
        device_bytes=[reading.total for reading in baseline],
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
    then, now = what_is_trained(profile.run), what_is_trained(workload)
    different += [
        f"{name.replace('_', ' ')} {_said(then[name])}, now {_said(now[name])}"
        for name in WHAT_IS_TRAINED
        if then[name] != now[name]
    ]
    measured_sizes = profile.plan(measured.world_size).sizes
    sizes = settings.plan(settings.world_size)
    if any(now > then for now, then in zip(sizes.sizes, measured_sizes, strict=False)):
        different.append(f"micro-batch {profile.plan(measured.world_size)}, now {sizes}")
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
            f"{trial.verdict} ({peak}, budget {format_bytes(budget)})",
            "use a smaller --micro-batch, or run `chatlm autotune` again",
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
        f"{format_bytes(budget.total)} held by others",
        "try a higher --target-vram, a larger "
        "--vram-limit, shorter --max-source-length and --max-target-length, or a smaller --model",
    )


def as_json(
    outcome: Outcome, profile: Profile, path: str, limits: Limits, room: int | None
) -> dict[str, Any]:
    """The document that `chatlm autotune --json` prints; `room` is what `estimated_capacity` says."""
    trial = outcome.answer
    assert trial is not None
    knee = profile.knee()
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
                "peak_bytes": device.peak,
                "context_bytes": device.context,
                "reserved_bytes": device.reserved,
                "allocated_bytes": device.allocated,
            }
            for budget, device in zip(trial.budgets, trial.measured, strict=True)
        ],
        "trials": [_row(t).model_dump(exclude_none=False) for t in outcome.trials],
        "seconds": outcome.seconds,
        "micro_batch_sizes": list(trial.sizes),
        "eval_batch_size": profile.batch.eval_batch_size,
        "loader_workers": profile.run.loader_workers,
        "knee": None if knee is None else knee.size,
        "would_hold": room,
    }


def _row(trial: Trial) -> TrialRow:
    return TrialRow(
        size=trial.size,
        sizes=None if trial.is_even else list(trial.sizes),
        verdict=trial.verdict.value,
        peak_bytes=trial.peak,
        seconds=trial.seconds,
        samples_per_second=trial.samples_per_second,
        tokens_per_second=trial.tokens_per_second,
        speed_spread=trial.speed_spread,
        reason=trial.reason,
    )


def _said(value: Any) -> str:
    if isinstance(value, list):
        return " + ".join(_said(v) for v in value) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return format_bytes(value) if isinstance(value, int) and value > 10**6 else str(value)
