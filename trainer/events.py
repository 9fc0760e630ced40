"""What happens while training; see `autotune.events`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.trial import DeviceBudget


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenising:
    """How far the rows have become tokens, before the workers are ready; about twice a second."""

    rows: int
    total: int | None
    """None where the file does not say how many it has."""
    tokens: int
    seconds: float
    """Since the first row, of earlier parts that were interrupted too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStarted:
    """The workers are ready; `step` counts from 1, and `first_step` is above 1 after a resume."""

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
    """What the profile allows on each device; empty where it names no target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnded:
    """One optimizer step: the object that `metrics.jsonl` holds for it."""

    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A row of the evaluation set and what the model made of it, as text."""

    prompt: str
    reference: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """An evaluation after a step; its scores are None where nothing was answered."""

    step: int
    loss: float
    """Over the whole set, per target token."""
    bleu: float | None = None
    """Corpus BLEU-4, of 100."""
    chrf: float | None = None
    """Of 100."""
    exact_match: float | None = None
    """A share."""
    words: str | None = None
    """What BLEU took for words: sacrebleu's `zh` or `13a`."""
    generated_rows: int = 0
    """Rows that were answered: the first ones of the set."""
    seconds: float = 0.0
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSaved:
    step: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingEnded:
    """The result that `chatlm train --json` prints, less its `schema`."""

    result: Mapping[str, object]
    interrupted: bool
