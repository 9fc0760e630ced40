"""Choices that are refused, each alone or together with others, and what to do instead."""

import os
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from autotune.errors import UsageError, named, shown
from trainer.config.options import Flag, Tracker, TrainOptions
from trainer.config.settings import TrainSettings, WorkloadSettings


def check_workload(settings: WorkloadSettings) -> None:
    """Raises UsageError for a number out of range, or choices that exclude each other."""
    check_ranges(settings)
    rank, freeze, is_fp16 = settings.lora_rank, settings.freeze, settings.precision == "fp16"
    refused = "--fsdp does not go with"
    for is_refused, what, hint in (
        (
            settings.messages_column is not None
            and (settings.prompt_column, settings.response_column) != (None, None),
            "--messages-column does not go with --prompt-column and --response-column",
            "name the conversation, or the prompt and its response",
        ),
        (
            is_fp16 and settings.device == "cpu",
            "--precision fp16 needs a GPU: only CUDA has the loss scale that keeps its gradients from 0",
            "use --precision bf16, or fp32",
        ),
        (
            settings.fsdp and is_fp16,
            f"{refused} --precision fp16: each process would choose its own loss scale",
            "use --precision bf16 or fp32",
        ),
        (
            settings.fsdp and settings.optimizer != "adamw",
            f"{refused} --optimizer {settings.optimizer}, whose state is not sharded",
            "use adamw",
        ),
        (
            settings.fsdp and rank is not None,
            f"{refused} --lora-rank: adapters cannot be merged into sharded weights",
            "leave one of them out; adapters need little memory",
        ),
        (
            rank is None and (settings.lora_alpha is not None or settings.lora_targets),
            "--lora-alpha and --lora-targets do nothing without LoRA",
            "give --lora-rank too, like 16",
        ),
        (
            rank is not None and freeze is not None,
            f"--lora-rank {rank} does not go with --freeze {freeze}: LoRA freezes all weights",
            "choose one, or name the decoder's layers with --lora-targets",
        ),
    ):
        if is_refused:
            raise UsageError(what, hint)


def check_training(settings: TrainSettings) -> TrainSettings:
    """The settings, checked.

    Raises:
        UsageError: a number out of range, choices that exclude each other, a missing package, or an
            output folder that holds the model.
    """
    check_ranges(settings)
    check_workload(settings.workload)
    # not `Path.resolve` and `Path.exists`, which raise for a loop of links and for a long name
    model = Path(os.path.realpath(settings.workload.model))
    output = Path(os.path.realpath(settings.output_dir))
    if model == output or (os.path.exists(model) and model.is_relative_to(output)):  # noqa: PTH110
        raise UsageError(
            f"--output-dir {named(settings.output_dir)} contains the --model, which the run would replace",
            "choose another --output-dir",
        )
    if settings.patience is not None and settings.workload.data and not settings.eval_data:
        raise UsageError(
            f"--patience {settings.patience} needs evaluations, and there is no evaluation data",
            "give --eval-data too",
        )
    for tracker in settings.track:
        if tracker not in get_args(Tracker):
            raise UsageError(
                f"--track {tracker} is not known", f"there are {' and '.join(get_args(Tracker))}"
            )
        if find_spec(tracker) is None:
            raise UsageError(
                f"--track {tracker} needs a package that is not installed: pip install {tracker}"
            )
    return settings


def check_ranges(settings: TrainSettings | WorkloadSettings) -> None:
    """Raises UsageError for a number outside the range of its flag."""
    for field in fields(TrainOptions):
        flag: Flag = field.metadata["flag"]
        name, value = field.name.replace("_", "-"), getattr(settings, field.name, None)
        if isinstance(value, int) and value >= 2**63:
            raise UsageError(f"--{name} {shown(value)} is out of range", "give less than 2^63")
        if isinstance(value, int | float) and flag.range and not flag.range.holds(value):
            number = f"{value:g}" if isinstance(value, float) else shown(value)
            raise UsageError(f"--{name} {number} is out of range", f"give {flag.range.says}")
