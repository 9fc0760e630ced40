"""Draws a `Screen` with rich, as rows of text: no boxes, no wrapping.

With rows instead of rich's `Layout`, `Panel` and `Table`, a frame takes a few milliseconds, not 20.
"""

import textwrap

from rich.console import Group
from rich.text import Text

from dashboard import bars
from dashboard.bars import progress_bar, sparkline
from dashboard.formatting import (
    clean,
    clock,
    figure,
    micro_batches,
    percent,
    scores_words,
    share,
    tokenise_words,
)
from dashboard.layout import GAP, LABEL, Layout, Part, finished, labelled, pair, spread
from dashboard.memory_panel import device_rows, host_rows
from dashboard.state import Screen
from dashboard.trials_panel import bracket_row, fit_rows, peak_rows, trial_rows
from trainer.events import TrainingStarted

HEIGHT = 24
WIDEST = 120
"""Longer rows are hard to follow."""
MOST_TRIALS = 10
SPEEDS = {"samples_per_second": "samples/s", "tokens_per_second": "tokens/s", "seconds": "s a step"}


def render(
    screen: Screen, width: int, elapsed: float, *, height: int = HEIGHT, ascii: bool = False
) -> Group:
    """One frame, at most `height` rows of at most `width` columns; `elapsed` in seconds."""
    glyphs = bars.ASCII if ascii else bars.UNICODE
    layout = Layout(width=max(20, min(width, WIDEST) - 2), glyphs=glyphs)
    height = min(height, HEIGHT)
    notices = [
        Text(line, "italic")
        for text in screen.notices
        for line in textwrap.wrap(clean(text), layout.width, max_lines=3, placeholder=" …")
    ]
    room = height - len(notices) - bool(notices)
    if screen.training is not None:
        rows = training_rows(layout, screen, elapsed)
    elif screen.tuning is not None:
        rows = tuning_rows(layout, screen, elapsed, room)
    else:
        rows = [title(layout, "chatlm", elapsed), *meters(layout, screen)]
        if screen.tokenising is not None:
            words = Part(Text(tokenise_words(screen.tokenising)))
            rows += [Text(), labelled(layout, "tokenise", words)]
    if notices:
        rows = [*rows[:room], Text(), *notices]
    return Group(*(finished(row, width, ascii=ascii) for row in rows[:height]))


def title(layout: Layout, name: str, elapsed: float, *subject: str) -> Text:
    left = Text(GAP * " ").join([Text(name, "bold"), *(Text(clean(word)) for word in subject)])
    return spread(layout.width, left, Text(clock(elapsed), "dim"))


def meters(layout: Layout, screen: Screen) -> list[Text]:
    """An empty row, devices and host; nothing before the first reading."""
    rows = [*device_rows(layout, screen), *host_rows(layout, screen)]
    return [Text(), *rows] if rows else []


def tuning_rows(layout: Layout, screen: Screen, elapsed: float, height: int) -> list[Text]:
    tuning = screen.tuning
    assert tuning is not None
    took = elapsed if screen.tuned is None else screen.tuned.seconds
    head = [
        title(layout, "chatlm autotune", took, tuning.model, f"target {percent(tuning.target)}"),
        *meters(layout, screen),
        Text(),
        bracket_row(layout, screen),
        *peak_rows(layout, screen),
    ]
    fit = fit_rows(layout, screen)
    room = height - len(head) - len(fit) - 2  # an empty row and the heading
    trials = trial_rows(layout, screen, min(MOST_TRIALS, room))
    return [*head, *fit, *([Text(), *trials] if trials else [])]


def training_rows(layout: Layout, screen: Screen, elapsed: float) -> list[Text]:
    run, saved = screen.training, screen.checkpoint
    assert run is not None
    rows = [
        title(layout, "chatlm train", elapsed, run.model, run.precision),
        *meters(layout, screen),
        Text(),
        step_row(layout, screen),
        *loss_rows(layout, screen),
        *record_rows(layout, screen),
        batch_row(layout, run),
    ]
    if saved is not None:
        step, where = pair("step", f"{saved.step:,}"), Text(clean(saved.path), "dim")
        rows.append(labelled(layout, "saved", Part(step), Part(where, 1)))
    return rows


def step_row(layout: Layout, screen: Screen) -> Text:
    step, steps = screen.step, screen.steps
    numbers = Text.assemble((f"{step:,}", "bold"), (" of ", "dim"), f"{steps:,}")
    right = Text(f"{share(step, steps):>5}")
    if screen.trained is not None:
        right.append("   stopped" if screen.trained.interrupted else "   done", "bold")
    elif screen.seconds_left is not None:
        right.append(f"   {clock(screen.seconds_left)} left", "dim")
    width = layout.width - LABEL - numbers.cell_len - right.cell_len - GAP - 2
    bar = progress_bar(layout.glyphs, max(4, width), step / max(1, steps))
    return labelled(layout, "step", Part(numbers), Part(Text.assemble(bar, " ", right)))


def loss_rows(layout: Layout, screen: Screen) -> list[Text]:
    rows = []
    if screen.losses and screen.first_loss is not None:
        first = pair("first", figure(screen.first_loss))
        numbers = Text(f"{figure(screen.losses[-1]):<6}", "bold")
        room = layout.width - LABEL - numbers.cell_len - first.cell_len - 6
        line = sparkline(layout.glyphs, max(4, room), screen.losses)
        rows.append(labelled(layout, "loss", Part(numbers), Part(line, 2), Part(first, 1)))
    if screen.evaluations:
        last = screen.evaluations[-1]
        best = min(screen.evaluations, key=lambda evaluation: evaluation.loss)
        numbers, at = Text(f"{figure(last.loss):<6}", "bold"), pair("at step", f"{last.step:,}")
        lowest = pair("lowest", f"{figure(best.loss)} at {best.step:,}")
        rows.append(labelled(layout, "eval loss", Part(numbers), Part(at, 1), Part(lowest, 2)))
        scores = [Part(pair(*score), i) for i, score in enumerate(scores_words(last))]
        rows += [labelled(layout, "answers", *scores)] if scores else []
    return rows


def record_rows(layout: Layout, screen: Screen) -> list[Text]:
    rows, record = [], screen.record
    speed = [
        Part(Text.assemble(figure(record[key]), (f" {unit}", "dim")), priority)
        for priority, (key, unit) in enumerate(SPEEDS.items())
        if record.get(key) is not None
    ]
    if speed:
        if record.get("padding") is not None:
            speed.append(Part(pair("padding", share(record["padding"], 1)), 9))
        rows.append(labelled(layout, "speed", *speed))
    if record.get("learning_rate") is not None:
        step = [Part(pair("rate", figure(record["learning_rate"])))]
        if record.get("grad_norm") is not None:
            step.append(Part(pair("gradient norm", figure(record["grad_norm"])), 1))
        rows.append(labelled(layout, "learning", *step))
    return rows


def batch_row(layout: Layout, run: TrainingStarted) -> Text:
    parts = [
        Part(pair("effective", f"{run.effective_batch:,}")),
        Part(pair("micro-batch", micro_batches(run.micro_batch, run.micro_batch_sizes)), 1),
        Part(pair("accumulation", f"{run.accumulation:,}"), 2),
        Part(pair("rows", f"{run.rows:,}"), 4),
    ]
    if run.world_size > 1:
        parts.insert(3, Part(pair("devices", f"{run.world_size:,}"), 3))
    return labelled(layout, "batch", *parts)
