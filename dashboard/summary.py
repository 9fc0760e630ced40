"""The lines that a command prints at its end."""

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
    """The plan, its peak, the other tuned settings, and where the profile is.

    `estimated_capacity` is the micro-batch that would fit the devices, if the effective batch is smaller.
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
    """The plan. It prints no product: the last micro-batch of a step may be smaller."""
    each = "each of " if plan.is_even else ""
    where = f" on {each}{plan.world_size} devices" if plan.world_size > 1 else ""
    cut = f"accumulation {plan.accumulation}, effective batch {plan.effective_batch}"
    return f"micro-batch {plan}{where}, {cut}"


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
    loaders, eval_batch = profile.run.loader_workers, profile.batch.eval_batch_size
    if eval_batch is None:
        return []
    processes = "no loader process" if loaders == 0 else counted(loaders, "loader process", "es")
    return [f"evaluation batch {eval_batch}, {processes} per device"]


def grown_words(profile: Profile) -> list[str]:
    """How the effective batch grew; the learning rate changes only with --scale-lr."""
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
    """A larger effective batch that would use the free memory, if the effective batch limits the size."""
    if estimated_capacity is None or sum(plan.sizes) < plan.effective_batch:
        return []
    return [
        f"there is room for about {estimated_capacity} sequences per device: --effective-batch "
        f"{estimated_capacity * plan.world_size} would use it"
    ]


def knee_words(profile: Profile) -> list[str]:
    """The smallest size that is as fast as the answer, where that is another one."""
    knee = profile.knee()
    if knee is None or knee.size >= profile.batch.micro_batch_size:
        return []
    return [
        f"the knee is micro-batch {micro_batches(knee.size, knee.sizes)}: the smallest tried that "
        "is as fast (within 3 %); --prefer throughput tunes for it, and holds less memory"
    ]


def trained_words(result: Mapping[str, Any], log_path: Path) -> str:
    loss = "" if result["final_loss"] is None else f", loss {result['final_loss']:.3f}"
    return (
        f"{result['steps']} steps, {result['samples']:,} samples{loss}, "
        f"{result['samples_per_second']:.1f} samples/s with evaluations and checkpoints, "
        f"peak {format_bytes(result['peak_bytes'])}\n"
        f"the run is in {result['output_dir']}, the log in {log_path}\n"
    )
