"""The settings of a run: what the user chose and the profile holds, resolved into plain values.

They travel to the workers as JSON and are saved with the run. Nothing here knows tensors.
"""

import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from autotune.errors import UsageError
from autotune.plan import Plan
from profiles import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSettings:
    """Everything that a step's memory depends on, and that probe and training share."""

    model: str = "chatlm-tiny"
    """A preset, a local folder, or a hub id."""
    data: tuple[str, ...] = ()
    """Files with prompts and responses; the bundled ones when empty."""
    max_source_length: int = 256
    max_target_length: int = 256
    precision: str = "auto"
    device: str = "cpu"
    """`cuda` or `cpu`."""
    gradient_checkpointing: bool = False
    dropout: float | None = None
    """None keeps the model's own."""
    seed: int = 0
    backend: str | None = None
    """`gloo` or `nccl` for several processes; None takes what suits the device."""
    memory_limit: int | None = None
    """Bytes that one process may hold, on an emulated card."""
    fsdp: bool = False
    """Weights, gradients and optimizer state are sharded over the processes (FSDP2)."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(**{**values, "data": tuple(values["data"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """A whole training run."""

    workload: WorkloadSettings
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
    loader_workers: int = 0
    eval_data: tuple[str, ...] = ()
    epochs: float = 1.0
    max_steps: int | None = None
    learning_rate: float | None = None
    """None takes the model preset's."""
    rate_scale: float = 1.0
    """What either is multiplied by: the effective batch may have grown."""
    warmup: float = 0.05
    """Share of the steps."""
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    profile: str | None = None
    """The name of the profile that the cut is from."""
    others: tuple[int, ...] = ()
    """Bytes that others hold on each rank's card, where the supervisor read them."""
    output_dir: str = "model_save/sft_fast"
    fresh: bool = False
    checkpoint_every: int | None = None
    """Optimizer steps; None saves at the end of each epoch."""
    keep_checkpoints: int = 2

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        known = {field.name for field in fields(cls)}
        assert set(values) <= known, set(values) - known
        workload = WorkloadSettings.from_json(values["workload"])
        lists = {
            key: None if values[key] is None else tuple(values[key])
            for key in ("eval_data", "others", "micro_batch_sizes")
        }
        return cls(**{**values, **lists, "workload": workload})

    def plan(self, world_size: int) -> Plan:
        """How this run's effective batch is cut."""
        return Plan(
            micro_batch=self.micro_batch_sizes or self.micro_batch,
            effective_batch=self.effective_batch,
            world_size=world_size,
        )

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run: a resumed one may change how a step is cut, no more."""
        cut = ("device", "memory_limit", "backend", "gradient_checkpointing", "fsdp")
        workload = {k: v for k, v in self.workload.as_json().items() if k not in cut}
        return {
            "workload": workload,
            "effective_batch": self.effective_batch,
            "epochs": self.epochs,
            "max_steps": self.max_steps,
            "learning_rate": self.learning_rate,
            "rate_scale": self.rate_scale,
            "warmup": self.warmup,
            "weight_decay": self.weight_decay,
            "clip_norm": self.clip_norm,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the user says of a run; None and empty leave it to the profile or the model."""

    model: str | None = None
    data: tuple[str, ...] = ()
    eval_data: tuple[str, ...] = ()
    micro_batch: int | None = None
    epochs: float = 1.0
    max_steps: int | None = None
    output_dir: str | None = None
    fresh: bool = False
    seed: int = 0
    precision: str = "auto"
    dropout: float | None = None
    learning_rate: float | None = None
    scale_lr: str | None = None
    """`linear` or `sqrt`, in the growth of the effective batch."""
    checkpoint_every: int | None = None
    backend: str | None = None


def resolve(
    profile: Profile, name: str, choices: Choices, *, device: str, world_size: int
) -> TrainSettings:
    """The run that a profile and the user's choices make.

    The user's own micro-batch stands for every forward pass: on all devices, in evaluation too.

    Raises:
        PlanError: the micro-batch is larger than a device's share of the effective batch.
        UsageError: a number outside its range.
    """
    plan = profile.plan(world_size, choices.micro_batch)
    workload = WorkloadSettings(
        model=choices.model or profile.run.model or WorkloadSettings().model,
        data=choices.data or tuple(profile.run.data or ()),
        device=device,
        seed=choices.seed,
        dropout=choices.dropout,
        backend=choices.backend,
    )
    workload = apply_profile(workload, profile)
    if choices.precision != "auto":
        workload = replace(workload, precision=choices.precision)
    return check_training(
        TrainSettings(
            workload=workload,
            micro_batch=plan.micro_batch,
            effective_batch=plan.effective_batch,
            world_size=world_size,
            micro_batch_sizes=None if plan.is_even else plan.sizes,
            eval_batch=None if choices.micro_batch else profile.batch.eval_batch_size,
            overhead=profile.overhead(),
            loader_workers=profile.run.loader_workers,
            eval_data=choices.eval_data,
            epochs=choices.epochs,
            max_steps=choices.max_steps,
            learning_rate=choices.learning_rate,
            rate_scale=rate_scale(profile, choices.scale_lr),
            profile=name,
            output_dir=choices.output_dir or str(Path("model_save") / f"sft_{Path(name).stem}"),
            fresh=choices.fresh,
            checkpoint_every=choices.checkpoint_every,
        )
    )


def rate_scale(profile: Profile, rule: str | None) -> float:
    """How much faster to learn, now that the effective batch has grown: only when asked to.

    In proportion (Goyal et al., arXiv 1706.02677), or by its root, as Adam's noise suggests
    (Malladi et al., arXiv 2205.10287).
    """
    batch = profile.batch
    if rule is None:
        return 1.0
    growth = batch.effective_batch_size / (
        batch.base_effective_batch_size or batch.effective_batch_size
    )
    return growth if rule == "linear" else math.sqrt(growth)


def apply_profile(settings: WorkloadSettings, profile: Profile) -> WorkloadSettings:
    """The settings with every `[run]` value of the profile that a step's memory depends on."""
    run = profile.run
    return replace(
        settings,
        max_source_length=run.max_source_length,
        max_target_length=run.max_target_length,
        precision=run.precision or settings.precision,
        gradient_checkpointing=run.gradient_checkpointing,
    )


def check_training(settings: TrainSettings) -> TrainSettings:
    """The settings, when each can be meant.

    Raises:
        UsageError: a number outside its range, or a run that would replace what it trains.
    """
    if not 0 < settings.epochs < math.inf:
        raise UsageError(
            f"--epochs {settings.epochs:g} is no length of a run; give a number above 0"
        )
    if settings.max_steps is not None and settings.max_steps < 1:
        raise UsageError(f"--max-steps {settings.max_steps} trains nothing; give 1 or more")
    dropout = settings.workload.dropout
    if dropout is not None and not 0 <= dropout < 1:
        raise UsageError(f"--dropout {dropout:g} is not a probability below 1; give 0 to 0.9")
    rate = settings.learning_rate
    if rate is not None and not 0 < rate < math.inf:
        raise UsageError(
            f"--learning-rate {rate:g} learns nothing; give a number above 0, like 1e-4"
        )
    if Path(settings.workload.model).resolve() == Path(settings.output_dir).resolve():
        raise UsageError(
            f"--output-dir {settings.output_dir} is the --model itself, which the run would replace; "
            f"choose another --output-dir"
        )
    if not 0 <= settings.workload.seed < 2**63:
        raise UsageError(f"--seed {settings.workload.seed} is no seed; give 0 to 2^63 - 1")
    return settings
