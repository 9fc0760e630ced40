"""The screen's state as one value, and how each event changes it.

Pure: no clock, no device, no terminal. `view` and `plain_lines` show it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from autotune import events
from autotune.readings import DeviceBudget, DeviceReading, HostReading
from autotune.trial import Trial, reevaluate
from autotune.verdict import Verdict
from trainer import events as run_events

RECENT_LOSSES = 200
RECENT_NOTICES = 3
SMOOTHING = 0.1
"""Weight of the newest step in `step_seconds`, an exponential mean: about 20 steps count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """The whole state; `Screen()` is the state before the first event."""

    tuning: events.TuningStarted | None = None
    budgets: tuple[DeviceBudget, ...] = ()
    low: int | None = None
    high: int | None = None
    running: int | None = None
    trials: tuple[Trial, ...] = ()
    tuned: events.TuningEnded | None = None

    devices: tuple[DeviceReading, ...] = ()
    highest: Mapping[str, int] = field(default_factory=dict)
    """The highest sample of `used` on each device since the probe or the training began."""
    host: HostReading | None = None
    workers: int | None = None
    """Resident host memory of our workers, bytes."""

    tokenising: run_events.Tokenising | None = None
    """Progress of the tokeniser; None once training has started."""
    training: run_events.TrainingStarted | None = None
    record: Mapping[str, float] = field(default_factory=dict)
    """The last step's object in `metrics.jsonl`; empty before the first step."""
    losses: tuple[float, ...] = ()
    """The losses of the last steps, oldest first."""
    first_loss: float | None = None
    step_seconds: float | None = None
    peak: int | None = None
    """Highest `device_peak_bytes` of any step."""
    evaluations: tuple[run_events.Evaluated, ...] = ()
    checkpoint: run_events.CheckpointSaved | None = None
    trained: run_events.TrainingEnded | None = None

    notices: tuple[str, ...] = ()

    @property
    def answer(self) -> int | None:
        return None if self.tuned is None else self.tuned.answer

    @property
    def answer_trial(self) -> Trial | None:
        """The trial of the answer: of its fitting trials the newest with the most sequences."""
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
    """The screen after the event; an unknown event changes nothing."""
    match event:
        case events.ReadingTaken():
            used = {d.device: max(d.used, screen.highest.get(d.device, 0)) for d in event.devices}
            return replace(
                screen, devices=event.devices, host=event.host, workers=event.workers,
                highest={**screen.highest, **used},
            )  # fmt: skip
        case run_events.StepEnded():
            return after_step(screen, event.record)
        case events.TuningStarted():
            return replace(
                screen, tuning=event, budgets=event.devices, low=0, high=event.ceiling + 1,
                running=None, trials=(), tuned=None,
            )  # fmt: skip
        case events.ProbeStarted():
            return replace(screen, running=event.size, low=event.low, high=event.high, highest={})
        case events.ProbeEnded():
            budgets = event.trial.budgets or screen.budgets
            return replace(
                screen, running=None, low=event.low, high=event.high, budgets=budgets,
                trials=(*(reevaluated(trial, budgets) for trial in screen.trials), event.trial),
            )  # fmt: skip
        case events.TuningEnded():
            return replace(screen, tuned=event, running=None)
        case run_events.Tokenising():
            return replace(screen, tokenising=event)
        case run_events.TrainingStarted():
            return replace(
                screen, tokenising=None, training=event, budgets=event.devices or screen.budgets,
                running=None, highest={}, record={}, losses=(), first_loss=None, step_seconds=None,
                peak=None, evaluations=(), checkpoint=None, trained=None,
            )  # fmt: skip
        case run_events.Evaluated():
            return replace(screen, evaluations=(*screen.evaluations, event)[-RECENT_LOSSES:])
        case run_events.CheckpointSaved():
            return replace(screen, checkpoint=event)
        case run_events.TrainingEnded():
            return replace(screen, trained=event)
        case events.Notice():
            others = tuple(text for text in screen.notices if text != event.text)
            return replace(screen, notices=(*others, event.text)[-RECENT_NOTICES:])
        case _:
            return screen


def reevaluated(trial: Trial, budgets: tuple[DeviceBudget, ...]) -> Trial:
    """The trial under the newest budgets, as the search sees it: tenants may have come or gone."""
    is_same_devices = len(trial.budgets) == len(budgets)
    return (reevaluate(trial, budgets) if is_same_devices else None) or trial


def after_step(screen: Screen, record: Mapping[str, float]) -> Screen:
    loss, seconds, mean = record.get("loss"), record.get("seconds"), screen.step_seconds
    if mean is not None and seconds is not None:
        seconds = mean + SMOOTHING * (seconds - mean)
    return replace(
        screen,
        record=dict(record),
        losses=screen.losses if loss is None else (*screen.losses, loss)[-RECENT_LOSSES:],
        first_loss=loss if screen.first_loss is None else screen.first_loss,
        step_seconds=mean if seconds is None else seconds,
        peak=max(screen.peak or 0, int(record.get("device_peak_bytes") or 0)) or None,
    )


def budget_of(trial: Trial, budgets: tuple[DeviceBudget, ...]) -> int | None:
    """The budget of the trial's tightest device; the smallest of a trial that still runs."""
    if trial.budgets:
        return trial.budgets[trial.tightest].budget
    return min((device.budget for device in budgets), default=None)
