"""The process of a rank: its device, precision and backend, as accelerate sets them up."""

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
)

from autotune.choices import Precision
from autotune.errors import DeviceError
from trainer.config.launch_environment import overrule, wants_gloo
from trainer.config.options import Backend
from trainer.config.settings import WorkloadSettings
from trainer.config.validation import check_workload


def make_accelerator(
    settings: WorkloadSettings, *, track: Sequence[str] = (), tracking: Path | None = None
) -> Accelerator:
    """The accelerator of this process, after checking that its device is there.

    Those trackers of accelerate's write below `tracking`.

    Accumulation is ours (`Engine.forward_backward`): accelerate's own divides by micro-batches, not tokens.
    """
    overrule(settings, os.environ)
    check_workload(settings)
    on_cpu = settings.device == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        raise DeviceError(
            "torch sees no CUDA device", "use --device cpu, or install a CUDA build of torch"
        )
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    handlers: list[Any] = [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    if world_size > 1:  # the others wait while one tokenises
        handlers.append(
            InitProcessGroupKwargs(backend=backend(settings), timeout=COLLECTIVE_TIMEOUT)
        )
    return Accelerator(
        cpu=on_cpu,
        mixed_precision=ACCELERATE_PRECISION[precision(settings)],
        # said, since accelerate's own variables (as `accelerate launch` sets them from a user's
        # configuration) would divide the gradient once more, or compile the model
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
        kwargs_handlers=handlers,
        log_with=list(track) or None,
        project_config=ProjectConfiguration(
            logging_dir=None if tracking is None else str(tracking)
        ),
    )


COLLECTIVE_TIMEOUT = timedelta(hours=2)

ACCELERATE_PRECISION: dict[Precision, str] = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def precision(settings: WorkloadSettings) -> Precision:
    """What `auto` means on this device: bf16 where the card computes in it, fp32 on a CPU."""
    if settings.precision != "auto":
        return settings.precision
    if settings.device == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def backend(settings: WorkloadSettings) -> Backend:
    """gloo on a CPU, and where the user or `ACCELERATE_USE_GLOO` asks for it; else NCCL."""
    if settings.device == "cpu":
        return "gloo"
    return "gloo" if wants_gloo(settings.backend) else "nccl"
