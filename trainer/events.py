"""What happens while training (see `autotune.events`), and the workers' other messages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from autotune.events import Notice
from autotune.readings import DeviceBudget
from autotune.workers.messages import Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenising:
    """The progress of tokenising, before the workers are ready; about twice a second."""

    type: ClassVar[str] = "tokenising"
    rows: int
    total: int | None
    """None where the file does not say how many it has."""
    tokens: int
    seconds: float
    """Seconds of tokenising, those before an interruption included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStarted:
    """The workers are ready; `step` counts from 1, and `first_step` is above 1 after a resume."""

    type: ClassVar[str] = "started"
    model: str
    rows: int
    first_step: int
    steps: int
    effective_batch: int
    micro_batch: int
    """The largest of the ranks'."""
    accumulation: int
    world_size: int
    precision: str
    output_dir: str
    micro_batch_sizes: tuple[int, ...] | None = None
    """One a rank; None when all are equal."""
    devices: tuple[DeviceBudget, ...] = ()
    """What the profile allows on each device; the supervisor adds them, if there is a target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnded:
    """One optimizer step: the object that `metrics.jsonl` holds for it."""

    type: ClassVar[str] = "step"
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A row of the evaluation set and the model's answer, as text."""

    prompt: str
    reference: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """An evaluation after a step; its scores are None when it generated no answers."""

    type: ClassVar[str] = "evaluated"
    step: int
    loss: float
    """Over the whole set, per target token."""
    bleu: float | None = None
    """Corpus BLEU-4, out of 100."""
    chrf: float | None = None
    """Out of 100."""
    exact_match: float | None = None
    """A share, 0..1."""
    words: str | None = None
    """BLEU's tokenizer: sacrebleu's `zh` or `13a`."""
    generated_rows: int = 0
    """The first rows of the set, which were answered."""
    seconds: float = 0.0
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSaved:
    type: ClassVar[str] = "checkpoint"
    step: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingEnded:
    """The result that `chatlm train --json` prints, less its `schema`."""

    type: ClassVar[str] = "done"
    result: Mapping[str, object]
    interrupted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """Model and data are loaded; the supervisor compares `facts` with the profile, then sends `Go`."""

    type: ClassVar[str] = "built"
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """To a worker, first: what to train (`TrainSettings.as_json`)."""

    type: ClassVar[str] = "train"
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Go:
    """To a worker: start to train."""

    type: ClassVar[str] = "go"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """To a worker: save a checkpoint after this step, and exit."""

    type: ClassVar[str] = "stop"


Progress = (
    Notice
    | Tokenising
    | Built
    | TrainingStarted
    | StepEnded
    | Evaluated
    | CheckpointSaved
    | TrainingEnded
)
"""What a training process says while it runs."""
FromTrainer = Progress | Failed
ToTrainer = Train | Go | Stop
Say = Callable[[Progress], None]
"""Sends an event: to the supervisor, or to standard output under the user's own launcher."""
