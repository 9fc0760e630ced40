"""What a user can choose: each field is a flag of the command line and a key of a run's TOML file.

One definition serves `chatlm autotune`, `chatlm train`, `python -m trainer` and the file. `None` leaves a
choice to the profile or the model. What they mean together is `resolve`'s and `checks`' business.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from autotune.choices import DeviceKind, Freeze, Optimizer, Precision, Prefer

Schedule = Literal["cosine", "linear", "constant"]
Backend = Literal["gloo", "nccl"]
ScaleRule = Literal["linear", "sqrt"]
Tracker = Literal["tensorboard", "wandb"]


@dataclass(frozen=True, slots=True)
class Flag:
    """How a choice looks on the command line."""

    help: str
    least: int | None = None
    """The smallest number that is accepted."""
    names: str | None = None
    """Its flags, where they are not the field's name with dashes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadOptions:
    """What a step's memory depends on: `autotune` and `train` share it."""

    model: Annotated[str | None, Flag("chatlm-tiny, chatlm-0.2b, a model folder, or a hub id.")] = (
        None
    )
    data: Annotated[
        tuple[str, ...] | None, Flag("Parquet, JSON or JSON lines; may be given several times.")
    ] = None
    eval_data: Annotated[
        tuple[str, ...] | None, Flag("Files to evaluate on; may be given several times.")
    ] = None
    precision: Annotated[
        Literal["auto", Precision], Flag("bf16 where the card computes in it.")
    ] = "auto"
    optimizer: Annotated[Optimizer | None, Flag("adamw by default.")] = None
    gradient_checkpointing: Annotated[
        bool | None,
        Flag("Less memory for the forward pass, which is computed twice."),
    ] = None
    freeze: Annotated[
        Literal[Freeze, "none"] | None, Flag("Train all of a seq2seq model but its encoder.")
    ] = None
    lora_rank: Annotated[
        int | None,
        Flag("Train adapters of that rank (LoRA) instead of the model; 0: none.", least=0),
    ] = None
    lora_alpha: Annotated[float | None, Flag("What they are scaled by; twice the rank.")] = None
    lora_targets: Annotated[
        tuple[str, ...] | None, Flag("Names of the layers that get one; may be repeated.")
    ] = None
    neftune_alpha: Annotated[
        float | None, Flag("Noise on the input embeddings in training (NEFTune), like 5.")
    ] = None
    compile: Annotated[bool | None, Flag("torch.compile, with a bounded number of shapes.")] = None
    fsdp: Annotated[bool | None, Flag("Shard model and optimizer over the devices (FSDP2).")] = None
    backend: Annotated[Backend | None, Flag("Between processes; NCCL on GPUs, gloo on CPUs.")] = (
        None
    )
    device: Annotated[Literal["auto", DeviceKind], Flag("A GPU where there is one.")] = "auto"
    num_processes: Annotated[int | None, Flag("One a device; all GPUs by default.")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AutotuneOptions(WorkloadOptions):
    """`chatlm autotune`."""

    target_vram: Annotated[float, Flag("Share of each device to hold.")] = 0.6
    target_ram: Annotated[float, Flag("Share of host RAM not to exceed.")] = 0.8
    base: Annotated[str, Flag("Profile to start from.")] = "fast"
    effective_batch: Annotated[
        int | None, Flag("Samples per optimizer step, kept as given.", least=1)
    ] = None
    vram_limit: Annotated[str | None, Flag("Pretend that each card is that large, like 20GiB.")] = (
        None
    )
    max_batch: Annotated[int | None, Flag("Largest size to try.", least=1)] = None
    prefer: Annotated[
        Prefer,
        Flag("The largest size, or the smallest that is as fast as any."),
    ] = "memory"
    per_device: Annotated[bool, Flag("Its own micro-batch for each unequal card.")] = False
    max_source_length: Annotated[
        int | None, Flag("Tokens; the base profile's by default.", least=2)
    ] = None
    max_target_length: Annotated[
        int | None, Flag("Tokens; the base profile's by default.", least=2)
    ] = None
    name: Annotated[str, Flag("Writes ./profiles/NAME.toml.")] = "tuned"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions(WorkloadOptions):
    """`chatlm train` and `python -m trainer`."""

    profile: Annotated[str, Flag("Name or path.")] = "tuned"
    micro_batch: Annotated[
        int | None, Flag("Instead of the profile's; changes memory and speed only.")
    ] = None
    epochs: Annotated[float, Flag("Passes over the data.")] = 1.0
    max_steps: Annotated[int | None, Flag("Optimizer steps, instead of epochs.")] = None
    seed: Annotated[int, Flag("Of the order of samples, the noise, and new weights.")] = 0
    dropout: Annotated[float | None, Flag("The model's own by default.")] = None
    learning_rate: Annotated[float | None, Flag("The model's default if not given.")] = None
    scale_lr: Annotated[
        ScaleRule | None, Flag("Scale it by the growth of the effective batch.")
    ] = None
    schedule: Annotated[Schedule, Flag("Of the learning rate, after its warm-up.")] = "cosine"
    warmup: Annotated[float, Flag("Share of the steps.")] = 0.05
    weight_decay: Annotated[float, Flag("Of weights, not of norms and biases.")] = 0.01
    clip_norm: Annotated[float, Flag("Longest gradient; a longer one is scaled down.")] = 1.0
    length_grouping: Annotated[
        bool, Flag("Steps of samples of like length: less padding, another order.")
    ] = False
    output_dir: Annotated[str | None, Flag("model_save/sft_PROFILE by default.")] = None
    fresh: Annotated[
        bool,
        Flag("Replace an unfinished run, or go on with it.", names="--fresh/--resume"),
    ] = False
    checkpoint_every: Annotated[
        int | None, Flag("Optimizer steps; each epoch by default.", least=1)
    ] = None
    keep_checkpoints: Annotated[int, Flag("The last ones that stay, beside the best.", least=1)] = 2
    eval_every: Annotated[int | None, Flag("Optimizer steps; each epoch by default.", least=1)] = (
        None
    )
    patience: Annotated[
        int | None, Flag("Stop after that many evaluations without a better loss.", least=1)
    ] = None
    generate_rows: Annotated[
        int, Flag("Rows that an evaluation answers, for BLEU and chrF.", least=0)
    ] = 200
    max_new_tokens: Annotated[
        int | None, Flag("Of such an answer; the profile's target length by default.", least=1)
    ] = None
    track: Annotated[
        tuple[str, ...] | None, Flag("tensorboard or wandb: log there too; may be repeated.")
    ] = None


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
"""Under which heading a choice stands in `--help`; the rest come first."""


def panel_of(name: str) -> str | None:
    """The heading of that field."""
    return next((panel for panel, names in PANELS.items() if name in names), None)
