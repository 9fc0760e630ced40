"""Environment variables of a launcher: which ones count, and which ones are removed. No torch.

torchrun's variables give the number of processes. Those that `accelerate launch` sets from its configuration
file would override the user's flags; they are removed, and a notice names what differs.
"""

import os
import re
from collections.abc import Mapping, MutableMapping

from autotune.errors import UsageError, shown
from autotune.workers.launch import is_true, wants_cpu
from trainer.config.options import Backend
from trainer.config.settings import WorkloadSettings

KEPT = (
    "ACCELERATE_USE_GLOO",  # not accelerate's own: scripts set it, and `wants_gloo` reads it
    "ACCELERATE_CPU_AFFINITY",
    "ACCELERATE_DEBUG_MODE",
    "ACCELERATE_LOG_LEVEL",
)
"""These stay: they change no result."""
UNKNOWN_HERE = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "its parallelism",
}
TORCHRUN = "torchrun --nproc-per-node N -m chatlm.trainer"


def world_size(environment: Mapping[str, str]) -> int:
    """The number of processes over all nodes.

    Raises:
        UsageError: several processes were started, each of which would train alone, or a variable is no number.
    """
    size = _count(environment, "WORLD_SIZE")
    if "LOCAL_RANK" in environment:
        return size
    tasks = _count(environment, "SLURM_STEP_NUM_TASKS")
    if tasks > 1:
        raise UsageError(
            f"srun started {tasks} processes, each of which would train alone",
            f"start one a node: srun --ntasks-per-node 1 {TORCHRUN} (docs/nodes.md)",
        )
    if size > 1:
        raise UsageError(
            f"WORLD_SIZE is {size}, but without LOCAL_RANK this process would train alone",
            f"start it by {TORCHRUN}",
        )
    return size


def _count(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "1")
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise UsageError(f"{name} is {shown(value)}, which is no number of processes", "unset it")
    return int(value)


def wants_gloo(backend: Backend | None) -> bool:
    """Whether the user asks for gloo, by `--backend` or by `ACCELERATE_USE_GLOO`."""
    if backend is not None:
        return backend == "gloo"
    return os.environ.get("ACCELERATE_USE_GLOO", "0") not in ("", "0")


def overrule(settings: WorkloadSettings, environment: MutableMapping[str, str]) -> str | None:
    """Removes accelerate's own settings; returns a line about those that the run does not follow."""
    said = filter(None, (_differences(settings, environment), _alone(environment)))
    for name in [*environment]:
        if name.startswith(("ACCELERATE_", "FSDP_")) and name not in KEPT:
            del environment[name]
    return "; ".join(said) or None


def _differences(settings: WorkloadSettings, environment: Mapping[str, str]) -> str | None:
    other = []
    wanted = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if wanted not in ("no", *_precisions(settings)):  # "no" is also the default
        other.append(f"mixed precision {wanted} (here: --precision {settings.precision})")
    steps = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps != "1":
        other.append(f"{steps} accumulation steps (here: by the profile)")
    compiler = environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if compiler != "no" and not settings.compile:
        other.append(f"torch.compile by {compiler} (here: --compile)")
    if is_true(environment.get("ACCELERATE_USE_FSDP")) and not settings.fsdp:
        other.append("FSDP (here: --fsdp)")
    if wants_cpu(environment) and settings.device != "cpu":
        other.append("the CPU (here: --device cpu)")
    asked = [what for name, what in UNKNOWN_HERE.items() if is_true(environment.get(name))]
    other += [f"{what} (not offered)" for what in asked]
    if not other:
        return None
    return f"not taken from accelerate's configuration: {', '.join(other)}; the flags decide"


def _precisions(settings: WorkloadSettings) -> tuple[str, ...]:
    """Accelerate's names for the run's precision; `auto` on a GPU may be bf16."""
    if settings.precision == "auto" and settings.device == "cuda":
        return ("bf16",)
    return () if settings.precision in ("auto", "fp32") else (settings.precision,)


def _alone(environment: Mapping[str, str]) -> str | None:
    """A line if `accelerate launch --cpu` started one process instead of several."""
    asked = "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment
    if not asked or "LOCAL_RANK" in environment:
        return None
    return (
        "accelerate launch was asked for several processes and started one, as it does with --cpu; "
        f"for N of them: {TORCHRUN} --device cpu"
    )
