"""What a user can choose: each field is a flag of the command line and a key of a run's TOML file.

One definition serves `chatlm autotune`, `chatlm train`, `python -m trainer` and the file. `None` leaves a
choice to the profile or the model; `trainer.config.resolve` makes it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_type_hints

from autotune.choices import DeviceKind, Freeze, Optimizer, Precision, Prefer

Schedule = Literal["cosine", "linear", "constant"]
Backend = Literal["gloo", "nccl"]
ScaleRule = Literal["linear", "sqrt"]
Tracker = Literal["tensorboard", "wandb"]


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that a choice may have."""

    says: str
    holds: Callable[[float], bool]


POSITIVE = Range("a number above 0", lambda number: 0 < number < math.inf)
FRACTION = Range("0 or more and less than 1", lambda number: 0 <= number < 1)


@dataclass(frozen=True, slots=True)
class Flag:
    """How a choice looks on the command line."""

    help: str
    least: int | None = None
    """The smallest number that the command line parses."""
    range: Range | None = None
    """Checked once the settings are resolved, as `least` is for a run's file."""
    names: str | None = None
    """Its flags, where they are not the field's name with dashes."""


@dataclass(frozen=True, kw_only=True)
class WorkloadOptions:
    """What a step's memory depends on: `autotune` and `train` share it."""

    model: Annotated[str | None, Flag("chatlm-tiny, chatlm-0.2b, a model folder, or a hub id.")] = (
        None
    )
    data: Annotated[
        tuple[str, ...] | None, Flag("Parquet, JSON or JSON lines; may be repeated.")
    ] = None
    eval_data: Annotated[tuple[str, ...] | None, Flag("Files to evaluate on; may be repeated.")] = (
        None
    )
    precision: Annotated[
        Literal["auto", Precision], Flag("auto: bf16 or fp16 on a GPU, fp32 on the CPU.")
    ] = "auto"
    optimizer: Annotated[Optimizer | None, Flag("The profile's, or adamw.")] = None
    gradient_checkpointing: Annotated[
        bool | None, Flag("Save memory: compute activations again in the backward pass.")
    ] = None
    freeze: Annotated[
        Literal[Freeze, "none"] | None, Flag("Do not train the encoder of a seq2seq model.")
    ] = None
    lora_rank: Annotated[
        int | None, Flag("Train LoRA adapters of this rank, not the weights; 0: none.", least=0)
    ] = None
    lora_alpha: Annotated[float | None, Flag("LoRA's scale; twice the rank.", range=POSITIVE)] = (
        None
    )
    lora_targets: Annotated[
        tuple[str, ...] | None, Flag("Layers that get an adapter; may be repeated.")
    ] = None
    neftune_alpha: Annotated[
        float | None, Flag("Noise on the input embeddings (NEFTune), like 5.", range=POSITIVE)
    ] = None
    compile: Annotated[bool | None, Flag("Use torch.compile, with few different shapes.")] = None
    fsdp: Annotated[bool | None, Flag("Shard model and optimizer over the devices (FSDP2).")] = None
    backend: Annotated[
        Backend | None, Flag("Between processes; nccl on GPUs, gloo on the CPU.")
    ] = None
    device: Annotated[Literal["auto", DeviceKind], Flag("auto: a GPU if there is one.")] = "auto"
    num_processes: Annotated[int | None, Flag("One per device; all GPUs by default.")] = None


@dataclass(frozen=True, kw_only=True)
class AutotuneOptions(WorkloadOptions):
    """`chatlm autotune`."""

    target_vram: Annotated[float, Flag("Share of each device to fill.")] = 0.6
    target_ram: Annotated[float, Flag("Share of host RAM not to exceed.")] = 0.8
    base: Annotated[str, Flag("Profile to start from.")] = "fast"
    effective_batch: Annotated[
        int | None, Flag("Samples per optimizer step; never changed.", least=1)
    ] = None
    vram_limit: Annotated[str | None, Flag("Treat each card as this large, like 20GiB.")] = None
    max_batch: Annotated[int | None, Flag("Largest size to try.", least=1)] = None
    prefer: Annotated[Prefer, Flag("The largest size, or the smallest of the fastest.")] = "memory"
    per_device: Annotated[bool, Flag("A micro-batch of its own for each card.")] = False
    max_source_length: Annotated[
        int | None, Flag("Tokens; the base profile's by default.", least=2)
    ] = None
    max_target_length: Annotated[
        int | None, Flag("Tokens; the base profile's by default.", least=2)
    ] = None
    name: Annotated[str, Flag("Writes ./profiles/NAME.toml.")] = "tuned"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Choices that become settings of a training run as they are."""

    epochs: Annotated[float, Flag("Passes over the data.", range=POSITIVE)] = 1.0
    max_steps: Annotated[
        int | None,
        Flag("Optimizer steps, instead of epochs.", range=Range("1 or more", lambda n: n >= 1)),
    ] = None
    learning_rate: Annotated[float | None, Flag("Peak; the model's default.", range=POSITIVE)] = (
        None
    )
    schedule: Annotated[Schedule, Flag("Of the learning rate, after the warm-up.")] = "cosine"
    warmup: Annotated[float, Flag("Share of the steps.", range=FRACTION)] = 0.05
    weight_decay: Annotated[
        float,
        Flag(
            "AdamW weight decay; not applied to norms and biases.",
            range=Range("0 or more", lambda number: 0 <= number < math.inf),
        ),
    ] = 0.01
    clip_norm: Annotated[
        float,
        Flag(
            "Largest gradient norm; inf clips nothing.",
            range=Range("a number above 0, or inf", lambda number: number > 0),
        ),
    ] = 1.0
    length_grouping: Annotated[
        bool, Flag("Group samples of like length: less padding, another order.")
    ] = False
    eval_every: Annotated[int | None, Flag("Optimizer steps; each epoch by default.", least=1)] = (
        None
    )
    patience: Annotated[
        int | None, Flag("Stop after N evaluations in a row without a better loss.", least=1)
    ] = None
    generate_rows: Annotated[
        int, Flag("Rows to answer in an evaluation, for BLEU and chrF.", least=0)
    ] = 200
    max_new_tokens: Annotated[
        int | None, Flag("Per answer; the longest target by default.", least=1)
    ] = None
    fresh: Annotated[
        bool, Flag("Replace an unfinished run, or resume it.", names="--fresh/--resume")
    ] = False
    checkpoint_every: Annotated[
        int | None, Flag("Optimizer steps; each epoch by default.", least=1)
    ] = None
    keep_checkpoints: Annotated[int, Flag("The last N, beside the best.", least=1)] = 2


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunOptions, WorkloadOptions):
    """`chatlm train` and `python -m trainer`."""

    profile: Annotated[str, Flag("Name or path.")] = "tuned"
    micro_batch: Annotated[
        int | None, Flag("Instead of the profile's; changes memory and speed only.")
    ] = None
    seed: Annotated[
        int,
        Flag(
            "For the order of samples, noise and new weights.",
            range=Range("0 to 2^63 - 1", lambda number: 0 <= number < 2**63),
        ),
    ] = 0
    dropout: Annotated[float | None, Flag("The model's own by default.", range=FRACTION)] = None
    scale_lr: Annotated[
        ScaleRule | None, Flag("Scale the rate with the growth of the effective batch.")
    ] = None
    output_dir: Annotated[str | None, Flag("model_save/sft_PROFILE by default.")] = None
    track: Annotated[
        tuple[str, ...] | None, Flag("Log to tensorboard or wandb too; may be repeated.")
    ] = None


def flags_of(kind: type[Any]) -> dict[str, Flag]:
    """The flag of each field."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


PANELS = {
    "What is trained": (
        "eval_data", "precision", "optimizer", "freeze", "lora_rank", "lora_alpha",
        "lora_targets", "neftune_alpha", "dropout", "gradient_checkpointing", "compile",
        "max_source_length", "max_target_length",
    ),
    "Devices": ("device", "num_processes", "fsdp", "backend", "vram_limit", "per_device"),
    "Learning": (
        "epochs", "max_steps", "seed", "learning_rate", "scale_lr", "schedule", "warmup",
        "weight_decay", "clip_norm", "length_grouping",
    ),
    "Evaluation and logs": ("eval_every", "patience", "generate_rows", "max_new_tokens", "track"),
    "The run's folder": ("output_dir", "fresh", "checkpoint_every", "keep_checkpoints"),
}  # fmt: skip
"""The headings in `--help`; fields under none come first."""


def panel_of(name: str) -> str | None:
    """The heading of that field."""
    return next((panel for panel, names in PANELS.items() if name in names), None)
