"""The settings of a run, with every choice made: plain values that are sent to workers and saved.

`resolve` makes them from a profile and the user's choices; `validation` checks them.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

from pydantic import ConfigDict, TypeAdapter

from autotune.choices import MODEL_PRESET_NAMES, DeviceKind, Freeze, Loss, Optimizer, Precision
from autotune.files import absolute
from autotune.plan import Plan
from trainer.config.options import Backend, RunOptions
from trainer.reading.layouts import Columns

WHAT_IS_TRAINED = (
    "optimizer", "freeze", "lora_rank", "lora_alpha", "lora_targets", "neftune_alpha", "loss",
    "compile", "fsdp", "gradient_checkpointing",
)  # fmt: skip
"""Settings that a profile's `[run]` records under the same names; the user may override them."""
COLUMNS = ("prompt_column", "response_column", "messages_column")
"""Settings that say how the data are read; recorded in the same way."""


@dataclass(frozen=True)
class Settings:
    """What travels as JSON; an unknown key is an error."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return TypeAdapter(cls).validate_python(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSettings(Settings):
    """What a step's memory depends on; probe and training share it."""

    model: str = "chatlm-tiny"
    """A preset, a local folder, or a hub id."""
    data: tuple[str, ...] = ()
    """Files, folders, patterns or hub ids; the bundled rows when empty."""
    prompt_column: str | None = None
    """None takes the one that a known layout of columns has."""
    response_column: str | None = None
    messages_column: str | None = None
    max_source_length: int = 256
    max_target_length: int = 256
    precision: Literal["auto", Precision] = "auto"
    device: DeviceKind = "cpu"
    optimizer: Optimizer = "adamw"
    freeze: Freeze | None = None
    lora_rank: int | None = None
    """None: no LoRA."""
    lora_alpha: float | None = None
    """None: twice the rank."""
    lora_targets: tuple[str, ...] = ()
    """Names of layers; empty takes peft's for the model, else every linear layer."""
    neftune_alpha: float | None = None
    loss: Loss = "chunked"
    compile: bool = False
    fsdp: bool = False
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False
    """Whether the model's own Python code may run. No profile or file asks for it."""
    dropout: float | None = None
    """None keeps the model's own."""
    seed: int = 0
    backend: Backend | None = None
    """Between processes; None takes what suits the device."""
    memory_limit: int | None = None
    """Bytes that one process may hold, on an emulated card."""

    @property
    def columns(self) -> Columns:
        return Columns(self.prompt_column, self.response_column, self.messages_column)

    @property
    def located(self) -> Self:
        """The same, with data and model that any folder finds."""
        model = self.model if self.model in MODEL_PRESET_NAMES else absolute(self.model)
        return replace(self, data=tuple(map(absolute, self.data)), model=model)


@dataclass(frozen=True, kw_only=True)
class TrainSettings(RunOptions, Settings):
    """A whole training run: the user's choices as they are, and what was resolved."""

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
    """Tokens that cost as much time as one more micro-batch; None if not measured."""
    memory_fractions: tuple[float, ...] | None = None
    """The shares of a micro-batch's memory that source and target take; None if not measured."""
    loader_workers: int = 0
    eval_data: tuple[str, ...] = ()
    rate_scale: float = 1.0
    """Factor on the learning rate, from --scale-lr."""
    others: tuple[int, ...] = ()
    """Bytes that others hold on each rank's card; empty where no supervisor read them."""
    output_dir: str = "model_save/sft_fast"
    track: tuple[str, ...] = ()
    device_names: tuple[str, ...] = ()
    """One per budget; empty where no supervisor read the devices."""
    budgets: tuple[int, ...] = ()
    """Bytes that the profile's target allows on each device."""

    def plan(self, world_size: int) -> Plan:
        return Plan(
            micro_batch=self.micro_batch_sizes or self.micro_batch,
            effective_batch=self.effective_batch,
            world_size=world_size,
        )

    def run_key(self) -> dict[str, Any]:
        """What must be the same to resume a run; only how a step is cut and computed may change.

        The data is compared by content, once it is tokenised.
        """
        cut = (
            "device", "memory_limit", "backend", "gradient_checkpointing", "loss", "compile", "fsdp",
        )  # fmt: skip
        left_out = (*cut, "data", *COLUMNS, "trust_remote_code")  # the last belongs to one start
        workload = {k: v for k, v in self.workload.located.as_json().items() if k not in left_out}
        return {"workload": workload, **{name: getattr(self, name) for name in RUN_KEY_FIELDS}}


RUN_KEY_FIELDS = (
    "effective_batch", "epochs", "max_steps", "learning_rate", "rate_scale", "schedule", "warmup",
    "weight_decay", "clip_norm", "length_grouping",
)  # fmt: skip
