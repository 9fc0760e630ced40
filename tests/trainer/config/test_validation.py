"""Choices that are out of range, or that exclude each other."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import UsageError
from trainer.config.settings import TrainSettings, WorkloadSettings
from trainer.config.validation import check_training, check_workload

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


@pytest.mark.parametrize("make", ["long", "loop", "*/" * 2000, "\udcff", "\x1b[2J"])
def test_a_model_of_any_name_goes_through_the_checks(tmp_path: Path, make: str) -> None:
    """Whether it is there is not asked here, but it may lie in the folder that the run replaces."""
    (tmp_path / "loop").symlink_to("loop")
    name = str(tmp_path / "loop") if make == "loop" else "x" * 5000 if make == "long" else make
    workload = WorkloadSettings(model=name)
    run = TrainSettings(
        workload=workload, profile="p", micro_batch=1, effective_batch=1, output_dir=str(tmp_path)
    )

    assert check_training(replace(run, output_dir="run")).workload.model == name
    with pytest.raises(UsageError, match="contains the --model"):
        check_training(replace(run, output_dir=name))


@pytest.mark.parametrize(
    ("value", "said"), [(2**63, 2**63), (10**400, f"1{'0' * 79} … {'0' * 20}")]
)
def test_a_number_that_no_machine_counts_to_is_refused(value: int, said: object) -> None:
    with pytest.raises(UsageError) as caught:
        check_workload(WorkloadSettings(seed=value))

    assert str(caught.value) == f"--seed {said} is out of range; give less than 2^63"
