"""Sets up accelerate for this process: device, precision, backend and trackers."""

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

COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""Long enough for the ranks that wait while one tokenises."""
ACCELERATE_PRECISION: dict[Precision, str] = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
PRODUCTS: dict[Precision, torch.dtype | None] = {
    "fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16,
}  # fmt: skip
"""What products are computed in; None: in the weights' own type."""


def make_accelerator(
    settings: WorkloadSettings, *, track: Sequence[str] = (), tracking: Path | None = None
) -> Accelerator:
    """The accelerator of this process; its trackers `track` write below the folder `tracking`.

    `Engine.forward_backward` accumulates: accelerate's own accumulation divides by micro-batches, not tokens.

    Raises:
        DeviceError: torch sees no CUDA device.
        UsageError: as `check_workload` does.
    """
    overrule(settings, os.environ)
    check_workload(settings)
    on_cpu = settings.device == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        raise DeviceError(
            "torch sees no CUDA device", "use --device cpu, or install a CUDA build of torch"
        )
    handlers: list[Any] = [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        handlers.append(
            InitProcessGroupKwargs(backend=backend(settings), timeout=COLLECTIVE_TIMEOUT)
        )
    return Accelerator(
        cpu=on_cpu,
        mixed_precision=ACCELERATE_PRECISION[precision(settings)],
        # explicit, since variables of `accelerate launch` would divide the gradient again, or compile
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
        kwargs_handlers=handlers,
        log_with=list(track) or None,
        project_config=ProjectConfiguration(
            logging_dir=None if tracking is None else str(tracking)
        ),
    )


def precision(settings: WorkloadSettings) -> Precision:
    """The precision; `auto` is fp32 on a CPU, bf16 on a GPU that computes in it, else fp16."""
    if settings.precision != "auto":
        return settings.precision
    if settings.device == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def backend(settings: WorkloadSettings) -> Backend:
    """gloo on a CPU or if the user asks for it, else NCCL."""
    return "gloo" if settings.device == "cpu" or wants_gloo(settings.backend) else "nccl"
