"""Choices that are out of range, or that exclude each other."""

from typing import Any

import pytest

from autotune.errors import UsageError
from trainer.config.settings import WorkloadSettings
from trainer.config.validation import check_workload

NO_LORA = "--lora-alpha and --lora-targets do nothing without LoRA; give --lora-rank too, like 16"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora_rank": -1}, "--lora-rank -1 is out of range; give 0 or more"),
        (
            {"lora_rank": 4, "lora_alpha": 0.0},
            "--lora-alpha 0 is out of range; give a number above 0",
        ),
        ({"lora_alpha": 8.0}, NO_LORA),
        ({"lora_targets": ("q",)}, NO_LORA),
        (
            {"lora_rank": 4, "freeze": "encoder"},
            "--lora-rank 4 does not go with --freeze encoder: LoRA freezes all weights; "
            "choose one, or name the decoder's layers with --lora-targets",
        ),
        (
            {"fsdp": True, "precision": "fp16", "device": "cuda"},
            "--fsdp does not go with --precision fp16: each process would choose its own loss scale; "
            "use --precision bf16 or fp32",
        ),
        (
            {"fsdp": True, "lora_rank": 4},
            "--fsdp does not go with --lora-rank: adapters cannot be merged into sharded weights; "
            "leave one of them out; adapters need little memory",
        ),
        (
            {"fsdp": True, "optimizer": "adafactor"},
            "--fsdp does not go with --optimizer adafactor, whose state is not sharded; use adamw",
        ),
        ({"seed": 10**40}, f"--seed {10**40} is out of range; give less than 2^63"),
        (
            {"lora_rank": -(10**400)},
            f"--lora-rank -1{'0' * 78} … {'0' * 20} is out of range; give 0 or more",
        ),
        ({"neftune_alpha": 0.0}, "--neftune-alpha 0 is out of range; give a number above 0"),
        (
            {"precision": "fp16"},
            "--precision fp16 needs a GPU: only CUDA has the loss scale that keeps its gradients "
            "from 0; use --precision bf16, or fp32",
        ),
    ],
)
def test_a_choice_that_cannot_be_meant_is_refused(values: dict[str, Any], message: str) -> None:
    """With the numbers, and what to give instead."""
    with pytest.raises(UsageError) as caught:
        check_workload(WorkloadSettings(**values))

    assert str(caught.value) == message
