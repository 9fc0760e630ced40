"""The settings of a run: what the user chose and the profile holds, resolved into plain values.

They travel to the workers as JSON and are saved with the run. Nothing here knows tensors.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from autotune.errors import UsageError
from autotune.plan import Plan
from profiles import Profile
from trainer.options import TrainOptions, WorkloadOptions
from trainer.schedules import check_schedule

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
    precision: str = "auto"
    device: str = "cpu"
    """`cuda` or `cpu`."""
    optimizer: str = "adamw"
    """`adamw`, `adafactor` or `adamw-8bit`."""
    freeze: str | None = None
    """`encoder`, for models that have one."""
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
    backend: str | None = None
    """`gloo` or `nccl` for several processes; None takes what suits the device."""
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
    schedule: str = "cosine"
    """`cosine`, `linear` or `constant`, after the warm-up."""
    warmup: float = 0.05
    """Share of the steps."""
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    length_grouping: bool = False
    """Compose steps of samples of like length; see `trainer.order`."""
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

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run: a resumed one may change how a step is cut, no more."""
        cut = ("device", "memory_limit", "backend", "gradient_checkpointing", "compile", "fsdp")
        workload = {k: v for k, v in self.workload.as_json().items() if k not in cut}
        return {"workload": workload, **{name: getattr(self, name) for name in IDENTITY}}


IDENTITY = (
    "effective_batch", "epochs", "max_steps", "learning_rate", "rate_scale", "schedule", "warmup",
    "weight_decay", "clip_norm", "length_grouping",
)  # fmt: skip


def tupled(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with a tuple for each list, as the fields of `kind` have it."""
    known = {field.name for field in fields(kind)}
    assert set(values) <= known, set(values) - known
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}


def resolve(
    profile: Profile, options: TrainOptions, *, device: str, world_size: int
) -> TrainSettings:
    """The run that a profile and the user's choices make.

    The user's own micro-batch stands for every forward pass: on all devices, in evaluation too.

    Raises:
        PlanError: the micro-batch is larger than a device's share of the effective batch.
        UsageError: a number outside its range.
    """
    plan = profile.plan(world_size, options.micro_batch)
    chosen = {**chosen_for(TrainSettings, options), "micro_batch": plan.micro_batch}
    workload = workload_settings(options, profile, device=device)
    folder = str(Path("model_save") / f"sft_{Path(options.profile).stem}")
    chosen.setdefault("output_dir", folder)
    return check_training(
        TrainSettings(
            workload=workload,
            effective_batch=plan.effective_batch,
            world_size=world_size,
            micro_batch_sizes=None if plan.is_even else plan.sizes,
            eval_batch=None if options.micro_batch else profile.batch.eval_batch_size,
            overhead=profile.overhead(),
            shares=measured_shares(profile, workload),
            loader_workers=profile.run.loader_workers,
            rate_scale=rate_scale(profile, options.scale_lr),
            **chosen,
        )
    )


def workload_settings(
    options: WorkloadOptions, profile: Profile, *, device: str
) -> WorkloadSettings:
    """What is trained and how: the user's choice, else the profile's, else the default.

    Raises:
        UsageError: choices that cannot be meant, alone or together.
    """
    chosen = {**chosen_for(WorkloadSettings, options), "device": device}
    if chosen["precision"] == "auto":
        del chosen["precision"]
    for name, without in (("freeze", "none"), ("lora_rank", 0)):
        if chosen.get(name) == without:
            chosen[name] = None
    if "lora_rank" in chosen and chosen["lora_rank"] is None:
        chosen.update(lora_alpha=None, lora_targets=())
    settings = replace(apply_profile(WorkloadSettings(), profile), **chosen)
    check_workload(settings)
    return settings


def chosen_for(kind: Any, options: Any) -> dict[str, Any]:
    """The choices that `kind` has a field for, less those that were left open."""
    names = {field.name for field in fields(kind)} & {field.name for field in fields(options)}
    return {name: v for name in names if (v := getattr(options, name)) is not None}


def measured_shares(profile: Profile, workload: WorkloadSettings) -> tuple[float, ...] | None:
    """What source and target take of the memory; nothing is known of another model than was tuned."""
    shares = profile.memory.shares
    return None if shares is None or workload.model != profile.run.model else tuple(shares)


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
    trained: dict[str, Any] = {name: getattr(run, name) for name in WHAT_IS_TRAINED}
    return replace(
        settings,
        model=run.model or settings.model,
        data=tuple(run.data or settings.data),
        max_source_length=run.max_source_length,
        max_target_length=run.max_target_length,
        precision=run.precision or settings.precision,
        **{**trained, "lora_targets": tuple(run.lora_targets)},
    )


def check_workload(settings: WorkloadSettings) -> None:
    """Raises UsageError for choices that cannot be meant, alone or together."""
    if settings.precision == "fp16" and settings.device == "cpu":
        raise UsageError(
            "--precision fp16 needs a GPU: its gradients are kept from vanishing by a loss scale that "
            "only CUDA has here; use --precision bf16, or fp32"
        )
    if settings.fsdp and settings.precision == "fp16":
        raise UsageError(
            "--fsdp does not go with --precision fp16, whose loss scale each process would choose by its "
            "own shard; use --precision bf16 or fp32"
        )
    if settings.fsdp and settings.optimizer != "adamw":
        raise UsageError(
            f"--fsdp does not go with --optimizer {settings.optimizer}, whose state is not sharded here; "
            f"use adamw"
        )
    if settings.fsdp and settings.lora_rank is not None:
        raise UsageError(
            "--fsdp does not go with --lora-rank: adapters cannot be merged into sharded weights here; "
            "leave one of them out (adapters need little memory to begin with)"
        )
    rank, alpha, noise = settings.lora_rank, settings.lora_alpha, settings.neftune_alpha
    if rank is not None and rank < 1:
        raise UsageError(f"--lora-rank {rank} adapts nothing; give 1 or more, like 16")
    if alpha is not None and not 0 < alpha < math.inf:
        raise UsageError(f"--lora-alpha {alpha:g} is no scale; give a number above 0, like 32")
    if rank is None and (alpha is not None or settings.lora_targets):
        given = "--lora-targets" if settings.lora_targets else "--lora-alpha"
        raise UsageError(f"{given} does nothing without LoRA; give --lora-rank too, like 16")
    if rank is not None and settings.freeze is not None:
        raise UsageError(
            f"--lora-rank {rank} and --freeze {settings.freeze} cannot be had together: LoRA freezes "
            f"all weights; choose one, or name the decoder's layers with --lora-targets"
        )
    if noise is not None and not 0 < noise < math.inf:
        raise UsageError(f"--neftune-alpha {noise:g} is no noise; give a number above 0, like 5")


def check_training(settings: TrainSettings) -> TrainSettings:
    """The settings, when each can be meant.

    Raises:
        UsageError: a number outside its range, or a run that would replace what it trains.
    """
    workload = settings.workload
    if not 0 < settings.epochs < math.inf:
        raise UsageError(
            f"--epochs {settings.epochs:g} is no length of a run; give a number above 0"
        )
    if settings.max_steps is not None and settings.max_steps < 1:
        raise UsageError(f"--max-steps {settings.max_steps} trains nothing; give 1 or more")
    if workload.dropout is not None and not 0 <= workload.dropout < 1:
        raise UsageError(
            f"--dropout {workload.dropout:g} is not a probability below 1; give 0 to 0.9"
        )
    check_workload(workload)
    check_schedule(settings.schedule)
    rate = settings.learning_rate
    if rate is not None and not 0 < rate < math.inf:
        raise UsageError(
            f"--learning-rate {rate:g} learns nothing; give a number above 0, like 1e-4"
        )
    if not 0 <= settings.warmup < 1:
        raise UsageError(f"--warmup {settings.warmup:g} is no share of the steps; give 0 to 0.9")
    if not 0 <= settings.weight_decay < math.inf:
        raise UsageError(f"--weight-decay {settings.weight_decay:g} is not 0 or more; give 0 to 1")
    if not settings.clip_norm > 0:
        raise UsageError(
            f"--clip-norm {settings.clip_norm:g} leaves no gradient; give a number above 0, or inf"
        )
    if Path(workload.model).resolve() == Path(settings.output_dir).resolve():
        raise UsageError(
            f"--output-dir {settings.output_dir} is the --model itself, which the run would replace; "
            f"choose another --output-dir"
        )
    check_evaluation(settings)
    if not 0 <= workload.seed < 2**63:
        raise UsageError(f"--seed {workload.seed} is no seed; give 0 to 2^63 - 1")
    return settings


TRACKERS = ("tensorboard", "wandb")


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
            raise UsageError(f"{flag} {value} means nothing; give {least} or more")
    if settings.patience is not None and settings.workload.data and not settings.eval_data:
        raise UsageError(
            f"--patience {settings.patience} waits for evaluations, and there is nothing to evaluate on; "
            f"give --eval-data too"
        )
    for tracker in settings.track:
        if tracker not in TRACKERS:
            raise UsageError(f"--track {tracker} is not known; there are {' and '.join(TRACKERS)}")
        if find_spec(tracker) is None:
            raise UsageError(
                f"--track {tracker} needs a package that is not installed: pip install {tracker}"
            )
