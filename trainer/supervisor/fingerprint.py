"""Whether a profile's figures hold for today's machine, data and settings."""

from pathlib import Path
from typing import Any

from autotune.devices.selection import DeviceSelection
from autotune.errors import ProfileError, named, shortened
from autotune.readings import DeviceBudget
from autotune.trial import MARGIN_SPREADS
from autotune.tuning.per_device import Sizes
from autotune.tuning.prober import Limits
from autotune.units import format_bytes
from autotune.workers.launch import memory_environment
from profiles import Profile, load
from profiles.schema import Fingerprint, RunSection
from trainer.config.settings import WHAT_IS_TRAINED, TrainSettings, WorkloadSettings


def fingerprint(workload_info: dict[str, Any], devices: DeviceSelection) -> Fingerprint:
    """The fingerprint of a workload, as a worker reports it, on these devices."""
    baseline = devices.group.read({})
    return Fingerprint(
        **workload_info,
        devices=[reading.name for reading in baseline],
        device_bytes=[reading.total for reading in baseline],
        driver=devices.driver,
    )


def what_is_trained(values: RunSection | WorkloadSettings) -> dict[str, Any]:
    """The choices, besides model, lengths and precision, that a step's memory depends on."""
    chosen = {name: getattr(values, name) for name in WHAT_IS_TRAINED}
    # a profile without a loss was measured when there was no other
    loss = chosen["loss"] or "logits"
    return {**chosen, "lora_targets": list(chosen["lora_targets"]), "loss": loss}


def previous_sizes(
    path: Path,
    limits: Limits,
    vram_limit: int | None,
    devices: DeviceSelection,
    settings: WorkloadSettings,
    workload_info: dict[str, Any],
) -> Sizes | None:
    """The sizes in the profile at `path`, as a first guess.

    None unless it is from a finished tuning with the same fingerprint, settings and limits.
    `workload_info` is a worker's report.
    """
    try:
        profile = load(str(path))
    except ProfileError:
        return None
    memory = profile.memory
    is_same = (
        not profile.interrupted
        and profile.fingerprint == fingerprint(workload_info["fingerprint"], devices)
        and profile.run.precision == workload_info["precision"]
        and profile.run.environment == memory_environment(devices.group.kind)
        and what_is_trained(profile.run) == what_is_trained(settings)
        and (memory.target_vram, memory.target_ram, memory.vram_limit_bytes)
        == (limits.target, limits.target_ram, vram_limit)
    )
    return profile.plan(devices.world_size).sizes if is_same else None


def differences(
    profile: Profile, found: Fingerprint, settings: TrainSettings, budgets: tuple[DeviceBudget, ...]
) -> list[str]:
    """Why the profile's figures may not hold for this run, in words; empty when they hold.

    A preset has no figures, so nothing differs from it. Shorter sequences need no more memory.
    """
    measured, workload = profile.fingerprint, settings.workload
    if measured.model is None:
        return []
    lengths = ("longest_source", "longest_target")
    then, now = (each.model_dump(exclude={*lengths}) for each in (measured, found))
    different = _changes(then, now)
    for name in lengths:
        old, new = getattr(measured, name), getattr(found, name)
        if old is None or new is None or new > old:
            different.append(f"{name.replace('_', ' ')} {old} tokens, now {new}")
    if workload.precision not in ("auto", profile.run.precision):
        different.append(f"precision {profile.run.precision}, now {workload.precision}")
    different += _changes(what_is_trained(profile.run), what_is_trained(workload))
    tuned, wanted = profile.plan(measured.world_size), settings.plan(settings.world_size)
    if any(size > old for size, old in zip(wanted.sizes, tuned.sizes, strict=False)):
        different.append(f"micro-batch {tuned}, now {wanted}")
    if profile.run.environment != memory_environment(workload.device):
        different.append("other allocator settings")
    peak = profile.memory.peak_bytes or 0
    margin = MARGIN_SPREADS * (profile.memory.noise_bytes or 0)
    different += [
        f"peak {format_bytes(peak)}, now a budget of {format_bytes(budget.budget)}"
        for budget in budgets
        if peak > budget.budget - margin
    ]
    return different


def _changes(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"{name.replace('_', ' ')} {_said(old)}, now {_said(now[name])}"
        for name, old in then.items()
        if old != now[name]
    ]


def _said(value: Any) -> str:
    if isinstance(value, list):
        return shortened(" + ".join(_said(v) for v in value)) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int) and value > 10**6:
        return format_bytes(value)
    return named(shortened(str(value)))
