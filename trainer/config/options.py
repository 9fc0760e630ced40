"""What a user can choose: each field is a flag of the command line and a key of a run's TOML file.

One definition serves `chatlm autotune`, `chatlm train`, `python -m trainer` and the file. `None` leaves a
choice to the profile or the model; `trainer.config.resolve` makes it.
"""

# ruff: noqa: RUF009  `flag` makes a dataclass field

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from autotune.choices import DeviceKind, Freeze, Loss, Optimizer, Precision, Prefer

Default = TypeVar("Default")
Schedule = Literal["cosine", "linear", "constant"]
Backend = Literal["gloo", "nccl"]
ScaleRule = Literal["linear", "sqrt"]
Tracker = Literal["tensorboard", "wandb"]


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that a choice may have."""

    says: str
    holds: Callable[[float], bool]


def at_least(least: int) -> Range:
    return Range(f"{least} or more", lambda number: number >= least)


POSITIVE = Range("a number above 0", lambda number: 0 < number < math.inf)
EPOCHS = Range("a number above 0, at most 1,000,000", lambda number: 0 < number <= 10**6)
FRACTION = Range("0 or more and less than 1", lambda number: 0 <= number < 1)
DECAY = Range("0 or more", lambda number: 0 <= number < math.inf)
NORM = Range("a number above 0, or inf", lambda number: number > 0)
SEED = Range("0 to 2^63 - 1", lambda number: 0 <= number < 2**63)


@dataclass(frozen=True, slots=True)
class Flag:
    """How a choice looks on the command line."""

    help: str
    least: int | None
    """The smallest number that the command line parses."""
    range: Range | None
    """Checked after the settings are resolved: the only check of a number in a run's file."""
    names: str | None
    """Its flags, where they are not the field's name with dashes."""


def flag(
    help: str,
    default: Default,
    *,
    least: int | None = None,
    range: Range | None = None,
    names: str | None = None,
) -> Default:
    """A field of that default with its flag as metadata."""
    if least is not None:
        range = at_least(least)
    made: Default = field(default=default, metadata={"flag": Flag(help, least, range, names)})
    return made


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How rows become the tokens of a model: every command that reads data has it."""

    model: str | None = flag(
        "chatlm-tiny, chatlm-0.2b, a folder, or a hub id; else the profile's, or chatlm-tiny.", None
    )
    prompt_column: str | None = flag("The column of prompts; else a known one.", None)
    response_column: str | None = flag("The column of answers; else a known one.", None)
    messages_column: str | None = flag("The column of conversations; else a known one.", None)
    trust_remote_code: bool = flag(
        "Run the model's own Python code; no file keeps this choice.", False
    )


@dataclass(frozen=True, kw_only=True)
class LengthOptions:
    """The longest sequences."""

    max_source_length: int | None = flag("Tokens; else the base profile's.", None, least=2)
    max_target_length: int | None = flag("Tokens; else the base profile's.", None, least=2)


@dataclass(frozen=True, kw_only=True)
class DataOptions(LengthOptions, ReadingOptions):
    """`chatlm data`."""

    profile: str = flag("Name or path: its lengths, model and data count.", "fast")
    row: int | None = flag("Show this row alone, in full; counted from 1.", None, least=1)


@dataclass(frozen=True, kw_only=True)
class WorkloadOptions(ReadingOptions):
    """What a step's memory depends on: `autotune` and `train` share it."""

    data: tuple[str, ...] | None = flag(
        "A file, folder, 'pattern' or hub id; may be repeated; else the profile's, or bundled rows.",
        None,
    )
    eval_data: tuple[str, ...] | None = flag("Files to evaluate on; may be repeated.", None)
    precision: Literal["auto", Precision] = flag(
        "auto: the profile's, else bf16 or fp16 on a GPU, fp32 on a CPU.", "auto"
    )
    optimizer: Optimizer | None = flag("Else the profile's, or adamw.", None)
    gradient_checkpointing: bool | None = flag("Keep few activations; compute them again.", None)
    freeze: Literal[Freeze, "none"] | None = flag("Do not train a seq2seq model's encoder.", None)
    lora_rank: int | None = flag("Train LoRA adapters of this rank; 0: none.", None, least=0)
    lora_alpha: float | None = flag("LoRA's scale; else twice the rank.", None, range=POSITIVE)
    lora_targets: tuple[str, ...] | None = flag("Layers to adapt; may be repeated.", None)
    neftune_alpha: float | None = flag("NEFTune's noise on embeddings.", None, range=POSITIVE)
    loss: Loss | None = flag("logits: build them whole, in more memory; else chunked.", None)
    compile: bool | None = flag("Use torch.compile, with few different shapes.", None)
    fsdp: bool | None = flag("Shard model and optimizer over the devices (FSDP2).", None)
    backend: Backend | None = flag("Process communication; nccl on GPUs, gloo on CPUs.", None)
    device: Literal["auto", DeviceKind] = flag("auto: a GPU if there is one.", "auto")
    num_processes: int | None = flag("One per device; all GPUs by default.", None)


@dataclass(frozen=True, kw_only=True)
class AutotuneOptions(LengthOptions, WorkloadOptions):
    """`chatlm autotune`."""

    target_vram: float = flag("Share of each device to fill.", 0.6)
    target_ram: float = flag("Share of host RAM not to exceed.", 0.8)
    base: str = flag("Profile to start from.", "fast")
    effective_batch: int | None = flag("Samples per optimizer step; never changed.", None, least=1)
    vram_limit: str | None = flag("Treat each card as this large, like 20GiB.", None)
    max_batch: int | None = flag("Largest size to try.", None, least=1)
    prefer: Prefer = flag("The largest size, or the smallest of the fastest.", "memory")
    per_device: bool = flag("A micro-batch of its own for each card.", False)
    name: str = flag("Write ./profiles/NAME.toml.", "tuned")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Choices that become settings of a training run as they are."""

    epochs: float = flag("Passes over the data.", 1.0, range=EPOCHS)
    max_steps: int | None = flag("Optimizer steps, instead of epochs.", None, range=at_least(1))
    learning_rate: float | None = flag("Peak; else the model's default.", None, range=POSITIVE)
    schedule: Schedule = flag("The learning rate after the warm-up.", "cosine")
    warmup: float = flag("Share of the steps in which the rate rises.", 0.05, range=FRACTION)
    weight_decay: float = flag(
        "AdamW weight decay; not applied to norms and biases.", 0.01, range=DECAY
    )
    clip_norm: float = flag("Largest gradient norm; inf clips nothing.", 1.0, range=NORM)
    length_grouping: bool = flag("Group similar lengths: less padding, another order.", False)
    eval_every: int | None = flag("Evaluate every N steps; else each epoch.", None, least=1)
    patience: int | None = flag("Stop after N evaluations without a lower loss.", None, least=1)
    generate_rows: int = flag("Rows to answer per evaluation, for BLEU and chrF.", 200, least=0)
    max_new_tokens: int | None = flag("Tokens per answer; else the longest target.", None, least=1)
    fresh: bool = flag("Replace an unfinished run, or resume it.", False, names="--fresh/--resume")
    checkpoint_every: int | None = flag(
        "Save every N steps; else each epoch and 15 minutes.", None, least=1
    )
    keep_checkpoints: int = flag("Keep the last N and the best.", 2, least=1)
    export_dtype: Literal["auto", Precision] = flag(
        "Of the final model's weights; auto: as the model's checkpoint.", "auto"
    )


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunOptions, WorkloadOptions):
    """`chatlm train` and `python -m trainer`."""

    profile: str = flag("Name or path.", "tuned")
    micro_batch: int | None = flag("Replaces the profile's; changes only memory and speed.", None)
    seed: int = flag("For the order of samples, noise and new weights.", 0, range=SEED)
    dropout: float | None = flag("Rate; else the model's own.", None, range=FRACTION)
    scale_lr: ScaleRule | None = flag("Scale the rate with a grown effective batch.", None)
    output_dir: str | None = flag("model_save/sft_PROFILE by default.", None)
    track: tuple[str, ...] | None = flag("tensorboard or wandb; may be repeated.", None)


PANELS = {
    "What is trained": (
        "eval_data", "prompt_column", "response_column", "messages_column", "trust_remote_code",
        "precision", "optimizer", "freeze", "lora_rank", "lora_alpha",
        "lora_targets", "neftune_alpha", "dropout", "gradient_checkpointing", "loss",
        "compile", "max_source_length", "max_target_length",
    ),
    "Devices": ("device", "num_processes", "fsdp", "backend", "vram_limit", "per_device"),
    "Learning": (
        "epochs", "max_steps", "seed", "learning_rate", "scale_lr", "schedule", "warmup",
        "weight_decay", "clip_norm", "length_grouping",
    ),
    "Evaluation and logs": ("eval_every", "patience", "generate_rows", "max_new_tokens", "track"),
    "The run's folder": (
        "output_dir", "fresh", "checkpoint_every", "keep_checkpoints", "export_dtype",
    ),
}  # fmt: skip
"""The headings in `--help`; fields under none come first."""
