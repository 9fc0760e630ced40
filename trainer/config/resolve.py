"""From a profile and the user's choices to the settings of a run."""

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from autotune.choices import DeviceKind
from profiles import Profile
from trainer.config.options import ReadingOptions, ScaleRule, TrainOptions
from trainer.config.settings import COLUMNS, WHAT_IS_TRAINED, TrainSettings, WorkloadSettings
from trainer.config.validation import check_training, check_workload


def resolve(
    profile: Profile, options: TrainOptions, *, device: DeviceKind, world_size: int
) -> TrainSettings:
    """The settings of a run from a profile and the user's choices.

    The user's micro-batch applies to all devices and to evaluation.

    Raises:
        PlanError: the micro-batch is larger than a device's share of the effective batch.
        UsageError: as `check_training` does.
    """
    plan = profile.plan(world_size, options.micro_batch)
    chosen = {**chosen_for(TrainSettings, options), "micro_batch": plan.micro_batch}
    workload = workload_settings(options, profile, device=device)
    fractions = profile.memory.shares if workload.model == profile.run.model else None
    chosen.setdefault("output_dir", str(Path("model_save") / f"sft_{Path(options.profile).stem}"))
    return check_training(
        TrainSettings(
            workload=workload,
            effective_batch=plan.effective_batch,
            world_size=world_size,
            micro_batch_sizes=None if plan.is_even else plan.sizes,
            eval_batch=None if options.micro_batch else profile.batch.eval_batch_size,
            overhead=profile.overhead(),
            memory_fractions=None if fractions is None else tuple(fractions),
            loader_workers=profile.run.loader_workers,
            rate_scale=rate_scale(profile, options.scale_lr),
            **chosen,
        )
    )


def workload_settings(
    options: ReadingOptions, profile: Profile, *, device: str
) -> WorkloadSettings:
    """Each setting from the user's choice, else from the profile, else its default.

    Raises:
        UsageError: as `check_workload` does.
    """
    chosen = {**chosen_for(WorkloadSettings, options), "device": device}
    if any(name in chosen for name in COLUMNS):  # they belong together
        chosen = {**dict.fromkeys(COLUMNS), **chosen}
    if chosen.get("precision") == "auto":
        del chosen["precision"]
    for name, without in (("freeze", "none"), ("lora_rank", 0)):
        if chosen.get(name) == without:
            chosen[name] = None
    if "lora_rank" in chosen and chosen["lora_rank"] is None:
        chosen.update(lora_alpha=None, lora_targets=())
    settings = replace(apply_profile(WorkloadSettings(), profile), **chosen)
    check_workload(settings)
    return settings


def chosen_for(kind: Any, options: Any) -> dict[str, Any]:
    """The choices that are fields of `kind` and are not None."""
    names = {field.name for field in fields(kind)} & {field.name for field in fields(options)}
    return {name: v for name in names if (v := getattr(options, name)) is not None}


def rate_scale(profile: Profile, rule: ScaleRule | None) -> float:
    """The factor on the learning rate for an effective batch that a tuning let grow; 1 without a rule.

    `linear`: the growth (Goyal et al., arXiv 1706.02677). `sqrt`: its root, as Adam's noise suggests
    (Malladi et al., arXiv 2205.10287).
    """
    if rule is None:
        return 1.0
    now = profile.batch.effective_batch_size
    growth = now / (profile.batch.base_effective_batch_size or now)
    return growth if rule == "linear" else math.sqrt(growth)


def apply_profile(settings: WorkloadSettings, profile: Profile) -> WorkloadSettings:
    """The settings with the values of the profile's `[run]`."""
    run = profile.run
    trained: dict[str, Any] = {name: getattr(run, name) for name in (*WHAT_IS_TRAINED, *COLUMNS)}
    return replace(
        settings,
        model=run.model or settings.model,
        data=tuple(run.data or settings.data),
        max_source_length=run.max_source_length,
        max_target_length=run.max_target_length,
        precision=run.precision or settings.precision,
        **{
            **trained,
            "lora_targets": tuple(run.lora_targets),
            "loss": run.loss or settings.loss,
        },
    )
