"""What a command found, in the few lines that it ends with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune.quantity import format_bytes
from dashboard.words import share
from profiles import Profile


def tuned_words(profile: Profile, seconds: float, wanted: int, path: Path) -> str:
    """How the effective batch is cut, what it peaks at, and where that stands."""
    batch, memory = profile.batch, profile.memory
    grown = f" (was {wanted})" if batch.effective_batch_size != wanted else ""
    assert memory.peak_bytes is not None
    assert memory.budget_bytes is not None
    return (
        f"micro-batch {batch.micro_batch_size} x accumulation "
        f"{batch.gradient_accumulation_steps}: effective batch "
        f"{batch.effective_batch_size}{grown}\n"
        f"peak {format_bytes(memory.peak_bytes)} of a budget of "
        f"{format_bytes(memory.budget_bytes)} ({share(memory.peak_bytes, memory.budget_bytes)}), found in {seconds:.0f} s\n"
        f"wrote {path}; train with it: chatlm train --profile {path.stem}\n"
    )


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
