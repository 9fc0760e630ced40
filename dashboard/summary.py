"""What a command found, in the few lines that it ends with."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune.plan import Plan
from autotune.units import format_bytes
from dashboard.formatting import counted, duration, figure, micro_batches, share
from profiles import Profile


def tuned_words(
    profile: Profile, seconds: float, path: Path, estimated_capacity: int | None = None
) -> str:
    """How the effective batch is cut, what it peaks at, what it is worth, and where that stands.

    `estimated_capacity` is the micro-batch that the devices had room for, where the effective batch is the
    smaller bound.
    """
    plan = profile.plan(profile.fingerprint.world_size)
    lines = [
        f"{cut_words(plan)}, found in {duration(seconds)}",
        memory_words(profile),
        *rest_words(profile),
        *grown_words(profile),
        *room_words(plan, estimated_capacity),
        *knee_words(profile),
        f"wrote {path}; train with it: chatlm train --profile {path.stem}",
    ]
    return "".join(f"{line}\n" for line in lines)


def cut_words(plan: Plan) -> str:
    """How a step is cut. No product: the last micro-batch of a step may be smaller."""
    where = ""
    if plan.world_size > 1:
        where = f" on {'each of ' if plan.is_even else ''}{plan.world_size} devices"
    return (
        f"micro-batch {plan}{where}, accumulation {plan.accumulation}, effective batch "
        f"{plan.effective_batch}"
    )


def memory_words(profile: Profile) -> str:
    memory = profile.memory
    assert memory.peak_bytes is not None
    assert memory.budget_bytes is not None
    is_one_of_many = len(profile.fingerprint.devices or ()) > 1
    return (
        f"peak {format_bytes(memory.peak_bytes)} of a budget of {format_bytes(memory.budget_bytes)} "
        f"({share(memory.peak_bytes, memory.budget_bytes)})"
        f"{', on the device with the least headroom' if is_one_of_many else ''}"
    )


def rest_words(profile: Profile) -> list[str]:
    """What else was tuned."""
    loaders, eval_batch = profile.run.loader_workers, profile.batch.eval_batch_size
    if eval_batch is None:
        return []
    processes = "no loader process" if loaders == 0 else counted(loaders, "loader process", "es")
    return [f"evaluation batch {eval_batch}, {processes} per device"]


def grown_words(profile: Profile) -> list[str]:
    """What the effective batch was, and that the learning rate is not adapted unasked."""
    before, after = profile.batch.base_effective_batch_size, profile.batch.effective_batch_size
    if before is None or before == after:
        return []
    ratio = after / before
    return [
        f"the effective batch grew from {before} to {after}, to hold a whole micro-batch per "
        f"device; the learning rate stays, unless you train with --scale-lr sqrt "
        f"(x {figure(math.sqrt(ratio))}) or linear (x {figure(ratio)})"
    ]


def room_words(plan: Plan, estimated_capacity: int | None) -> list[str]:
    """What would use the room that the effective batch leaves; another bound is the user's own."""
    if estimated_capacity is None or sum(plan.sizes) < plan.effective_batch:
        return []
    return [
        f"there is room for about {estimated_capacity} sequences per device: --effective-batch "
        f"{estimated_capacity * plan.world_size} would use it"
    ]


def knee_words(profile: Profile) -> list[str]:
    """The smallest size that is as fast, where that is not the one that was taken."""
    knee = profile.knee()
    if knee is None or knee.size >= profile.batch.micro_batch_size:
        return []
    return [
        f"the knee is micro-batch {micro_batches(knee.size, knee.sizes)}: the smallest tried that is as fast "
        f"(within 3 %); --prefer throughput tunes for it, and holds less memory"
    ]


def trained_words(result: Mapping[str, Any], log_path: Path) -> str:
    """How far it came, how fast, and where it is."""
    loss = "" if result["final_loss"] is None else f", loss {result['final_loss']:.3f}"
    return (
        f"{result['steps']} steps, {result['samples']:,} samples{loss}, "
        f"{result['samples_per_second']:.1f} samples/s with evaluations "
        f"and checkpoints, "
        f"peak {format_bytes(result['peak_bytes'])}\n"
        f"the run is in {result['output_dir']}, the log in {log_path}\n"
    )
