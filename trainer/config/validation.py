"""Settings that cannot be meant, alone or together, and what to say of them."""

import math
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from autotune.errors import UsageError
from trainer.config.options import Tracker
from trainer.config.settings import TrainSettings, WorkloadSettings


def check_workload(settings: WorkloadSettings) -> None:
    """Raises UsageError for choices that cannot be meant, alone or together."""
    if settings.precision == "fp16" and settings.device == "cpu":
        raise UsageError(
            "--precision fp16 needs a GPU: its gradients are kept from vanishing by a loss scale that "
            "only CUDA has here",
            "use --precision bf16, or fp32",
        )
    if settings.fsdp and settings.precision == "fp16":
        raise UsageError(
            "--fsdp does not go with --precision fp16, whose loss scale each process would choose by its "
            "own shard",
            "use --precision bf16 or fp32",
        )
    if settings.fsdp and settings.optimizer != "adamw":
        raise UsageError(
            f"--fsdp does not go with --optimizer {settings.optimizer}, whose state is not sharded here",
            "use adamw",
        )
    if settings.fsdp and settings.lora_rank is not None:
        raise UsageError(
            "--fsdp does not go with --lora-rank: adapters cannot be merged into sharded weights here",
            "leave one of them out (adapters need little memory to begin with)",
        )
    rank, alpha, noise = settings.lora_rank, settings.lora_alpha, settings.neftune_alpha
    if rank is not None and rank < 1:
        raise UsageError(f"--lora-rank {rank} adapts nothing", "give 1 or more, like 16")
    if alpha is not None and not 0 < alpha < math.inf:
        raise UsageError(f"--lora-alpha {alpha:g} is no scale", "give a number above 0, like 32")
    if rank is None and (alpha is not None or settings.lora_targets):
        given = "--lora-targets" if settings.lora_targets else "--lora-alpha"
        raise UsageError(f"{given} does nothing without LoRA", "give --lora-rank too, like 16")
    if rank is not None and settings.freeze is not None:
        raise UsageError(
            f"--lora-rank {rank} and --freeze {settings.freeze} cannot be had together: LoRA freezes "
            "all weights",
            "choose one, or name the decoder's layers with --lora-targets",
        )
    if noise is not None and not 0 < noise < math.inf:
        raise UsageError(f"--neftune-alpha {noise:g} is no noise", "give a number above 0, like 5")


def check_training(settings: TrainSettings) -> TrainSettings:
    """The settings, when each can be meant.

    Raises:
        UsageError: a number outside its range, or a run that would replace what it trains.
    """
    workload = settings.workload
    if not 0 < settings.epochs < math.inf:
        raise UsageError(
            f"--epochs {settings.epochs:g} is no length of a run", "give a number above 0"
        )
    if settings.max_steps is not None and settings.max_steps < 1:
        raise UsageError(f"--max-steps {settings.max_steps} trains nothing", "give 1 or more")
    if workload.dropout is not None and not 0 <= workload.dropout < 1:
        raise UsageError(
            f"--dropout {workload.dropout:g} is not a probability below 1", "give 0 to 0.9"
        )
    check_workload(workload)
    rate = settings.learning_rate
    if rate is not None and not 0 < rate < math.inf:
        raise UsageError(
            f"--learning-rate {rate:g} learns nothing", "give a number above 0, like 1e-4"
        )
    if not 0 <= settings.warmup < 1:
        raise UsageError(f"--warmup {settings.warmup:g} is no share of the steps", "give 0 to 0.9")
    if not 0 <= settings.weight_decay < math.inf:
        raise UsageError(
            f"--weight-decay {settings.weight_decay:g} is not 0 or more", "give 0 to 1"
        )
    if not settings.clip_norm > 0:
        raise UsageError(
            f"--clip-norm {settings.clip_norm:g} leaves no gradient",
            "give a number above 0, or inf",
        )
    model, output = Path(workload.model), Path(settings.output_dir)
    same = model.resolve() == output.resolve()
    if same or (model.exists() and model.resolve().is_relative_to(output.resolve())):
        raise UsageError(
            f"--output-dir {output} has the --model itself in it, which the run would replace",
            "choose another --output-dir",
        )
    check_evaluation(settings)
    if not 0 <= workload.seed < 2**63:
        raise UsageError(f"--seed {workload.seed} is no seed", "give 0 to 2^63 - 1")
    return settings


def check_evaluation(settings: TrainSettings) -> None:
    """Raises UsageError for what cannot be meant of evaluations and checkpoints, or of who hears of them.

    A flag has a least value of its own; a run file's key is first looked at here.
    """
    for flag, value, least in (
        ("--checkpoint-every", settings.checkpoint_every, 1),
        ("--keep-checkpoints", settings.keep_checkpoints, 1),
        ("--eval-every", settings.eval_every, 1),
        ("--patience", settings.patience, 1),
        ("--generate-rows", settings.generate_rows, 0),
        ("--max-new-tokens", settings.max_new_tokens, 1),
    ):
        if value is not None and value < least:
            raise UsageError(f"{flag} {value} means nothing", f"give {least} or more")
    if settings.patience is not None and settings.workload.data and not settings.eval_data:
        raise UsageError(
            f"--patience {settings.patience} waits for evaluations, and there is nothing to evaluate on",
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
