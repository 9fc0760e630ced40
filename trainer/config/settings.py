"""The settings of a run: plain values, every choice made, as they travel to the workers and are saved.

How they follow from a profile and the user's choices is `resolve`'s business, which of them cannot be
meant `checks`'. Nothing here knows tensors.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from autotune.choices import DeviceKind, Freeze, Optimizer, Precision
from autotune.plan import Plan
from trainer.config.options import Backend, Schedule

WHAT_IS_TRAINED = (
    "optimizer", "freeze", "lora_rank", "lora_alpha", "lora_targets", "neftune_alpha", "compile",
    "fsdp", "gradient_checkpointing",
)  # fmt: skip
"""Settings that a profile's `[run]` holds under the same names, and that the user may override."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSettings:
    """Everything that a step's memory depends on, and that probe and training share."""

    model: str = "chatlm-tiny"
    """A preset, a local folder, or a hub id."""
    data: tuple[str, ...] = ()
    """Files with prompts and responses; the bundled ones when empty."""
    max_source_length: int = 256
    max_target_length: int = 256
    precision: Literal["auto", Precision] = "auto"
    device: DeviceKind = "cpu"
    optimizer: Optimizer = "adamw"
    freeze: Freeze | None = None
    lora_rank: int | None = None
    """Trains LoRA's adapters of that rank instead of the weights."""
    lora_alpha: float | None = None
    """None: twice the rank."""
    lora_targets: tuple[str, ...] = ()
    """Names of layers; empty takes peft's for the model, else every linear layer."""
    neftune_alpha: float | None = None
    """Noise on the input embeddings, as NEFTune scales it."""
    compile: bool = False
    fsdp: bool = False
    """Weights, gradients and optimizer state are sharded over the processes (FSDP2)."""
    gradient_checkpointing: bool = False
    dropout: float | None = None
    """None keeps the model's own."""
    seed: int = 0
    backend: Backend | None = None
    """Between processes; None takes what suits the device."""
    memory_limit: int | None = None
    """Bytes that one process may hold, on an emulated card."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(**tupled(cls, values))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """A whole training run."""

    workload: WorkloadSettings
    profile: str
    """Name or path."""
    micro_batch: int
    """The largest of the ranks'."""
    effective_batch: int
    world_size: int = 1
    micro_batch_sizes: tuple[int, ...] | None = None
    """One a rank; None when all are equal."""
    eval_batch: int | None = None
    """Sequences per device per forward pass in evaluation; None takes the rank's micro-batch."""
    overhead: float | None = None
    """What one more micro-batch costs, in tokens; None where no speed was measured."""
    shares: tuple[float, ...] | None = None
    """What source and target each take of a micro-batch's memory; None where that is not known."""
    loader_workers: int = 0
    eval_data: tuple[str, ...] = ()
    epochs: float = 1.0
    max_steps: int | None = None
    learning_rate: float | None = None
    """None takes the model preset's."""
    rate_scale: float = 1.0
    """What either is multiplied by: the effective batch may have grown."""
    schedule: Schedule = "cosine"
    """After the warm-up."""
    warmup: float = 0.05
    """Share of the steps."""
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    length_grouping: bool = False
    """Compose steps of samples of like length; see `trainer.data.sample_order`."""
    others: tuple[int, ...] = ()
    """Bytes that others hold on each rank's card, where the supervisor read them."""
    output_dir: str = "model_save/sft_fast"
    fresh: bool = False
    checkpoint_every: int | None = None
    """Optimizer steps; None saves at the end of each epoch."""
    keep_checkpoints: int = 2
    eval_every: int | None = None
    """Optimizer steps; None evaluates at the end of each epoch. The end of the run always does."""
    patience: int | None = None
    """Evaluations in a row without a lower loss that end the run; None goes on to the last step."""
    generate_rows: int = 200
    """The first so many rows of the evaluation set are answered too, and the answers scored."""
    max_new_tokens: int | None = None
    """Of an answer; None allows as many as the longest of the data has."""
    track: tuple[str, ...] = ()
    """`tensorboard`, `wandb`."""
    device_names: tuple[str, ...] = ()
    """Of each device with a target in the profile, where the supervisor read them."""
    budgets: tuple[int, ...] = ()
    """Bytes that the profile allows on each of those."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        known = {field.name for field in fields(cls)}
        assert set(values) <= known, set(values) - known
        workload = WorkloadSettings.from_json(values["workload"])
        return cls(**{**tupled(cls, values), "workload": workload})

    def plan(self, world_size: int) -> Plan:
        """How this run's effective batch is cut."""
        return Plan(
            micro_batch=self.micro_batch_sizes or self.micro_batch,
            effective_batch=self.effective_batch,
            world_size=world_size,
        )

    def run_key(self) -> dict[str, Any]:
        """What makes two runs the same run: a resumed one may change how a step is cut, no more."""
        cut = ("device", "memory_limit", "backend", "gradient_checkpointing", "compile", "fsdp")
        workload = {k: v for k, v in self.workload.as_json().items() if k not in cut}
        return {"workload": workload, **{name: getattr(self, name) for name in RUN_KEY_FIELDS}}


RUN_KEY_FIELDS = (
    "effective_batch", "epochs", "max_steps", "learning_rate", "rate_scale", "schedule", "warmup",
    "weight_decay", "clip_norm", "length_grouping",
)  # fmt: skip


def tupled(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with a tuple for each list, as the fields of `kind` have it."""
    known = {field.name for field in fields(kind)}
    assert set(values) <= known, set(values) - known
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
