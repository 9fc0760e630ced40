"""What launchers say in variables: how many processes there are, and settings that are not followed."""

import pytest

from autotune.errors import UsageError
from trainer.config.launch_environment import overrule, world_size
from trainer.config.settings import WorkloadSettings

LAUNCHED = {
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_USE_CPU": "False",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
    "LOCAL_RANK": "0",
    "OMP_NUM_THREADS": "1",
}
"""As `accelerate launch` leaves it without a configuration file."""


def test_a_launch_that_asks_for_nothing_is_no_conflict() -> None:
    """accelerate's variables are gone all the same; what is not its own stays."""
    environment = {**LAUNCHED, "ACCELERATE_USE_GLOO": "1"}

    said = overrule(WorkloadSettings(), environment)

    assert said is None
    assert environment == {"LOCAL_RANK": "0", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_GLOO": "1"}


def test_all_that_is_not_followed_is_told_in_one_line() -> None:
    """Each with the flag that decides instead."""
    environment = {
        **LAUNCHED,
        "ACCELERATE_MIXED_PRECISION": "fp16",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "1",
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_USE_CPU": "True",
    }

    said = overrule(WorkloadSettings(precision="fp32", device="cuda"), environment)

    assert said == (
        "not taken from accelerate's configuration: mixed precision fp16 (here: --precision fp32), "
        "4 accumulation steps (here: by the profile), torch.compile by inductor (here: --compile), "
        "FSDP (here: --fsdp), the CPU (here: --device cpu), DeepSpeed (not offered); the flags decide"
    )
    assert set(environment) == {"LOCAL_RANK", "OMP_NUM_THREADS"}


@pytest.mark.parametrize(
    ("settings", "variables"),
    [
        (WorkloadSettings(precision="bf16"), {"ACCELERATE_MIXED_PRECISION": "bf16"}),
        (WorkloadSettings(device="cuda"), {"ACCELERATE_MIXED_PRECISION": "bf16"}),
        (WorkloadSettings(compile=True), {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}),
        (WorkloadSettings(fsdp=True), {"ACCELERATE_USE_FSDP": "true"}),
        (WorkloadSettings(device="cpu"), {"ACCELERATE_USE_CPU": "True"}),
    ],
)
def test_a_configuration_that_agrees_with_the_flags_is_no_conflict(
    settings: WorkloadSettings, variables: dict[str, str]
) -> None:
    """bf16 is what `auto` takes on a card."""
    assert overrule(settings, {**LAUNCHED, **variables}) is None


def test_one_process_where_several_were_asked_for_is_told() -> None:
    """`accelerate launch --cpu --num_processes 2` starts one, and names an address for the other."""
    environment = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}

    said = overrule(WorkloadSettings(), environment)

    assert said is not None
    assert "started one" in said
    assert "torchrun --nproc-per-node N -m chatlm.trainer --device cpu" in said


def test_the_launcher_says_how_many_processes_there_are() -> None:
    """Under srun too, where it starts one torchrun a node."""
    assert world_size({}) == 1
    assert world_size({"WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == 4
    assert world_size({"WORLD_SIZE": "4", "LOCAL_RANK": "1", "SLURM_STEP_NUM_TASKS": "2"}) == 4
    assert world_size({"SLURM_NTASKS": "8"}) == 1  # in the batch script itself


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"SLURM_STEP_NUM_TASKS": "8"}, "srun started 8 processes"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE is 2, but without LOCAL_RANK"),
    ],
)
def test_processes_that_would_each_train_alone_are_refused(
    environment: dict[str, str], told: str
) -> None:
    """All would write the same folder."""
    with pytest.raises(UsageError, match=told) as error:
        world_size(environment)

    assert "torchrun --nproc-per-node N -m chatlm.trainer" in str(error.value)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
@pytest.mark.parametrize("value", ["", "two", "-1", "²", "9" * 5000])
def test_a_number_of_processes_that_is_none_is_named(name: str, value: str) -> None:
    with pytest.raises(UsageError) as caught:
        world_size({name: value})

    assert str(caught.value).startswith(f"{name} is '{value[:60]}")
    assert str(caught.value).endswith(", which is no number of processes; unset it")
