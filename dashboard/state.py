"""Everything that the screen knows, as one value, and how an event changes it.

Pure: no clock, no device, no terminal. `view` and `plain` say what it looks like.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from autotune.events import (
    Notice,
    ProbeEnded,
    ProbeStarted,
    ReadingTaken,
    TuningEnded,
    TuningStarted,
)
from autotune.readings import DeviceReading, HostReading
from autotune.trial import DeviceBudget, Trial, reevaluate
from autotune.verdict import Verdict
from trainer.events import (
    CheckpointSaved,
    Evaluated,
    StepEnded,
    Tokenising,
    TrainingEnded,
    TrainingStarted,
)

RECENT_LOSSES = 200
RECENT_NOTICES = 3
SMOOTHING = 0.1
"""Weight of the newest step in the mean step time: about the last twenty steps count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """The whole state; `Screen()` is the state before the first event."""

    tuning: TuningStarted | None = None
    budgets: tuple[DeviceBudget, ...] = ()
    low: int | None = None
    high: int | None = None
    running: int | None = None
    """The size that is being probed."""
    trials: tuple[Trial, ...] = ()
    tuned: TuningEnded | None = None

    devices: tuple[DeviceReading, ...] = ()
    highest: Mapping[str, int] = field(default_factory=dict)
    """Highest `used` that was sampled on each device since the probe, or training, began."""
    host: HostReading | None = None
    workers: int | None = None
    """Resident host memory of our workers, bytes."""

    tokenising: Tokenising | None = None
    """How far the rows are; None once training has started."""
    training: TrainingStarted | None = None
    record: Mapping[str, float] = field(default_factory=dict)
    """The last step's object in `metrics.jsonl`; empty before the first step."""
    losses: tuple[float, ...] = ()
    """Of the last steps, oldest first."""
    first_loss: float | None = None
    step_seconds: float | None = None
    """Mean time of a step, the newest counting most."""
    peak: int | None = None
    """Highest `device_peak_bytes` of any step."""
    evaluations: tuple[Evaluated, ...] = ()
    checkpoint: CheckpointSaved | None = None
    trained: TrainingEnded | None = None

    notices: tuple[str, ...] = ()

    @property
    def answer(self) -> int | None:
        """The size to train with, once the search is over."""
        return None if self.tuned is None else self.tuned.answer

    @property
    def answer_trial(self) -> Trial | None:
        """The evidence for it: the newest of that size that fits, with the most sequences."""
        fits = [t for t in self.trials if t.size == self.answer and t.verdict is Verdict.FITS]
        return max(reversed(fits), key=lambda t: t.sequences, default=None)

    @property
    def step(self) -> int:
        """The last finished step; a resumed run starts above 0."""
        if "step" in self.record:
            return int(self.record["step"])
        return 0 if self.training is None else self.training.first_step - 1

    @property
    def steps(self) -> int:
        return 0 if self.training is None else self.training.steps

    @property
    def seconds_left(self) -> float | None:
        return None if self.step_seconds is None else self.step_seconds * (self.steps - self.step)


def update(screen: Screen, event: object) -> Screen:
    """The screen after the event; an event that it does not know changes nothing."""
    match event:
        case ReadingTaken():
            return replace(
                screen,
                devices=event.devices,
                highest=raised(screen.highest, event.devices),
                host=event.host,
                workers=event.workers,
            )
        case StepEnded():
            return after_step(screen, event.record)
        case TuningStarted():
            return replace(
                screen, tuning=event, budgets=event.devices, low=0, high=event.ceiling + 1,
                running=None, trials=(), tuned=None,
            )  # fmt: skip
        case ProbeStarted():
            return replace(screen, running=event.size, low=event.low, high=event.high, highest={})
        case ProbeEnded():
            budgets = event.trial.budgets or screen.budgets
            return replace(
                screen, running=None, low=event.low, high=event.high, budgets=budgets,
                trials=(*(retold(trial, budgets) for trial in screen.trials), event.trial),
            )  # fmt: skip
        case TuningEnded():
            return replace(screen, tuned=event, running=None)
        case Tokenising():
            return replace(screen, tokenising=event)
        case TrainingStarted():
            return replace(
                screen, tokenising=None, training=event, budgets=event.devices or screen.budgets, running=None, highest={}, record={}, losses=(),
                first_loss=None, step_seconds=None, peak=None, evaluations=(), checkpoint=None,
                trained=None,
            )  # fmt: skip
        case Evaluated():
            return replace(screen, evaluations=(*screen.evaluations, event)[-RECENT_LOSSES:])
        case CheckpointSaved():
            return replace(screen, checkpoint=event)
        case TrainingEnded():
            return replace(screen, trained=event)
        case Notice():
            others = tuple(text for text in screen.notices if text != event.text)
            return replace(screen, notices=(*others, event.text)[-RECENT_NOTICES:])
        case _:
            return screen


def retold(trial: Trial, budgets: tuple[DeviceBudget, ...]) -> Trial:
    """The trial under the newest budgets, as the engine judges it: others may have come or gone."""
    if len(trial.budgets) != len(budgets):
        return trial
    return reevaluate(trial, budgets) or trial


def after_step(screen: Screen, record: Mapping[str, float]) -> Screen:
    loss = record.get("loss")
    losses = screen.losses if loss is None else (*screen.losses, loss)[-RECENT_LOSSES:]
    return replace(
        screen,
        record=dict(record),
        losses=losses,
        first_loss=loss if screen.first_loss is None else screen.first_loss,
        step_seconds=smoothed(screen.step_seconds, record.get("seconds")),
        peak=largest(screen.peak, record.get("device_peak_bytes")),
    )


def smoothed(mean: float | None, newest: float | None) -> float | None:
    if mean is None or newest is None:
        return newest if mean is None else mean
    return mean + SMOOTHING * (newest - mean)


def largest(peak: int | None, newest: float | None) -> int | None:
    if newest is None:
        return peak
    return int(newest) if peak is None else max(peak, int(newest))


def raised(highest: Mapping[str, int], devices: tuple[DeviceReading, ...]) -> Mapping[str, int]:
    return {**highest, **{d.device: max(d.used, highest.get(d.device, 0)) for d in devices}}


def budget_of(trial: Trial, budgets: tuple[DeviceBudget, ...]) -> int | None:
    """The budget that `trial.peak` is to be held against: of the device with the least headroom."""
    if trial.budgets:
        return trial.budgets[trial.tightest].budget
    if not budgets:
        return None
    if len(trial.device_peaks) != len(budgets):
        return min(device.budget for device in budgets)
    pairs = zip(trial.device_peaks, budgets, strict=True)
    return min(pairs, key=lambda pair: pair[1].budget - pair[0])[1].budget
