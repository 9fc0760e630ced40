"""Events as lines of text: for pipes, log files, dumb terminals and `--plain`. It uses no rich."""

import math
import textwrap
import time
from collections.abc import Callable
from typing import TextIO

from autotune import events
from autotune.readings import DeviceBudget
from autotune.terminal import spaced, write
from autotune.trial import Trial
from autotune.units import format_bytes
from dashboard.formatting import (
    answer_words,
    clean,
    clock,
    counted,
    duration,
    figure,
    give_or_take,
    micro_batches,
    peak_words,
    percent,
    reason_words,
    scores_words,
    share,
    shortened,
    tokenise_words,
    verdict_word,
)
from dashboard.state import Screen, budget_of, update
from trainer import events as run_events

QUIET = 10.0
"""A step is printed at the latest after this many seconds."""
LONGEST_TEXT = 60
"""Characters of a sample's prompt or answer."""
LONGEST_REASON = 120
"""Columns. torch's message is a paragraph; the profile keeps all of it."""


class PlainLines:
    """A listener that prints every event but readings, and a few of the steps."""

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream
        self.now = now
        self.screen = Screen()
        self.printed_step = 0
        self.printed_at = now()
        self.tokenised_at = -math.inf

    def __call__(self, event: object) -> None:
        self.screen = update(self.screen, event)
        if lines := self.lines(event):
            write("".join(f"{spaced(line)}\n" for line in lines), self.stream)

    def lines(self, event: object) -> list[str]:
        match event:
            case events.Notice():
                return [f"note    {clean(event.text)}"]
            case events.TuningStarted():
                head = f"tune    {event.model}  target {percent(event.target)}  sizes 1 … {event.ceiling}"
                return [head, *(budget_line(device) for device in event.devices)]
            case events.ProbeEnded():
                return [self.probe_line(event.trial)]
            case events.TuningEnded():
                return self.answer_lines(event)
            case run_events.Tokenising() if self.now() - self.tokenised_at >= QUIET:
                self.tokenised_at = self.now()
                return [f"tokenise {tokenise_words(event)}"]
            case run_events.TrainingStarted():
                self.printed_step = 0  # a resumed run may be behind the last printed step
                return [training_line(event)]
            case run_events.StepEnded() if self.step_is_due():
                self.printed_step, self.printed_at = self.screen.step, self.now()
                return [self.step_line()]
            case run_events.Evaluated():
                return [evaluation_line(event), *map(sample_line, event.samples)]
            case run_events.CheckpointSaved():
                return [f"saved   step {event.step}  {event.path}"]
            case run_events.TrainingEnded():
                return [self.end_line(event)]
            case _:
                return []

    def probe_line(self, trial: Trial) -> str:
        budget = budget_of(trial, self.screen.budgets)
        size = micro_batches(trial.size, trial.sizes)
        words = [f"probe   {size:<4}  {verdict_word(trial):<5}"]
        if trial.peak is not None and budget is not None:
            of_budget = f"{format_bytes(budget)} ({share(trial.peak, budget)})"
            words.append(f"peak {format_bytes(trial.peak, like=budget)} of {of_budget}")
        if trial.samples_per_second is not None:
            around = give_or_take(trial)
            speed = figure(trial.samples_per_second) + (f" {around}" if around else "")
            words.append(f"{speed} samples/s")
        if (reason := reason_words(trial)) is not None:
            words.append(textwrap.shorten(reason, LONGEST_REASON, placeholder=" …"))
        return "  ".join([*words, duration(trial.seconds)])

    def answer_lines(self, event: events.TuningEnded) -> list[str]:
        trial, probes = self.screen.answer_trial, counted(len(self.screen.trials), "probe")
        answer = "  ".join(["answer", *answer_words(self.screen), probes, duration(event.seconds)])
        parts = None if trial is None else peak_words(trial)
        return [answer] if parts is None else [answer, f"peak    {parts[0]}"]

    def step_is_due(self) -> bool:
        """True at the first and last step, at every twentieth of the run, and after `QUIET` seconds."""
        step, steps = self.screen.step, self.screen.steps
        is_edge = self.printed_step == 0 or step >= steps
        is_far = (step - self.printed_step) * 20 >= steps
        return is_edge or is_far or self.now() - self.printed_at >= QUIET

    def step_line(self) -> str:
        screen, record = self.screen, self.screen.record
        width = len(str(screen.steps))
        words = [f"step    {screen.step:>{width}}/{screen.steps}"]
        for key, form in (
            ("loss", "loss {}"),
            ("learning_rate", "lr {}"),
            ("grad_norm", "grad norm {}"),
            ("samples_per_second", "{} samples/s"),
            ("tokens_per_second", "{} tokens/s"),
        ):
            if record.get(key) is not None:
                words.append(form.format(figure(record[key])))
        if screen.peak is not None:
            words.append(f"peak {format_bytes(screen.peak)}")
        if screen.seconds_left and screen.step < screen.steps:
            words.append(f"{clock(screen.seconds_left)} left")
        return "  ".join(words)

    def end_line(self, event: run_events.TrainingEnded) -> str:
        screen, word = self.screen, "stopped" if event.interrupted else "done   "
        words = [f"{word} step {screen.step}/{screen.steps}"]
        loss, seconds = event.result.get("final_loss"), event.result.get("seconds")
        if isinstance(loss, int | float):
            words.append(f"loss {figure(loss)}")
        if isinstance(seconds, int | float):
            words.append(duration(seconds))
        if screen.training is not None:
            words.append(screen.training.output_dir)
        return "  ".join(words)


def budget_line(device: DeviceBudget) -> str:
    hard_limit = (
        "" if device.hard_limit is None else f", hard limit {format_bytes(device.hard_limit)}"
    )
    return (
        f"device  {device.name}  budget {format_bytes(device.budget)} of {format_bytes(device.total)}, "
        f"others hold {format_bytes(device.others)}{hard_limit}"
    )


def training_line(event: run_events.TrainingStarted) -> str:
    size = micro_batches(event.micro_batch, event.micro_batch_sizes)
    resumed = f" from step {event.first_step}" if event.first_step > 1 else ""
    return (
        f"train   {event.model}  {event.rows:,} rows  {event.steps} steps{resumed}  "
        f"effective batch {event.effective_batch}  micro-batch {size}  "
        f"accumulation {event.accumulation}  processes {event.world_size}  {event.precision}"
    )


def evaluation_line(event: run_events.Evaluated) -> str:
    scores = map(" ".join, scores_words(event))
    words = [f"eval    step {event.step}  loss {figure(event.loss)}", *scores]
    if event.seconds:
        words.append(duration(event.seconds))
    return "  ".join(words)


def sample_line(sample: run_events.Sample) -> str:
    asked, answer = shortened(sample.prompt, LONGEST_TEXT), shortened(sample.answer, LONGEST_TEXT)
    line = f"sample  {asked} → {answer or '(nothing)'}"
    if sample.answer == sample.reference:
        return f"{line}  ✓"
    return f"{line}  ✗ wanted {shortened(sample.reference, LONGEST_TEXT)}"
