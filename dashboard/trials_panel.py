"""The search on the screen: the bracket, the trials by size, and the fitted memory line."""

from collections.abc import Mapping

from rich.text import Text

from autotune.trial import Trial, choose
from autotune.units import format_bytes
from autotune.verdict import Verdict
from dashboard.bars import distance_style, peak_bar
from dashboard.formatting import (
    answer_words,
    duration,
    figure,
    give_or_take,
    micro_batches,
    peak_words,
    reason_words,
    share,
    verdict_word,
)
from dashboard.layout import Layout, Part, labelled, pair
from dashboard.memory_fit import fit_line
from dashboard.memory_panel import memories
from dashboard.state import Screen, budget_of

BAR = ""
COLUMNS = {
    "size": 0, "verdict": 0, "peak": 1, "of budget": 3, BAR: 5, "samples/s": 2, "spread": 7,
    "tokens/s": 6, "time": 4,
}  # fmt: skip
"""Columns in order. A narrow terminal drops the one with the highest number first and never a 0."""
WIDEST_SIZE = 16
LEAST_BAR = 12
WIDEST_BAR = 42


def bracket_row(layout: Layout, screen: Screen) -> Text:
    if screen.tuned is not None:
        return outcome_row(layout, screen)
    assert screen.tuning is not None
    ceiling = screen.tuning.ceiling
    low = max(1, screen.low or 0)
    high = ceiling if screen.high is None else max(low, screen.high - 1)
    parts = [Part(Text(sizes(low, high), "bold"))]
    if (low, high) != (1, ceiling):
        parts.append(Part(pair("of", sizes(1, ceiling)), 2))
    if screen.running is not None:
        parts.append(Part(pair("running", f"{screen.running:,}"), 1))
    return labelled(layout, "in doubt", *parts)


def outcome_row(layout: Layout, screen: Screen) -> Text:
    is_found, glyphs, trial = screen.answer is not None, layout.glyphs, screen.answer_trial
    glyph, style = (glyphs.fits, "bold green") if is_found else (glyphs.oom, "bold")
    words, *rest = answer_words(screen)
    parts = [Part(Text(f"{glyph} {words}", style)), *(Part(Text(word), 1) for word in rest)]
    budget = None if trial is None else budget_of(trial, screen.budgets)
    if trial is not None and trial.peak is not None and budget is not None:
        parts.append(Part(pair("holds", format_bytes(trial.peak)), 2))
        parts.append(Part(pair("headroom", format_bytes(budget - trial.peak)), 3))
    return labelled(layout, "answer", *parts)


def peak_rows(layout: Layout, screen: Screen) -> list[Text]:
    """What the answer's peak consists of, where it is known and fits into the row."""
    words = None if screen.answer_trial is None else peak_words(screen.answer_trial)
    rows = [labelled(layout, "peak", Part(Text(text))) for text in words or ()]
    return [row for row in rows if row.cell_len <= layout.width][:1]


def sizes(low: int, high: int) -> str:
    return f"{low:,} … {high:,}" if low < high else f"{low:,}"


def trial_rows(layout: Layout, screen: Screen, most: int) -> list[Text]:
    """A heading and at most `most` rows, by size, so that the bars draw the memory curve."""
    running = running_trial(screen)
    trials = nearest(screen, most - (running is not None))
    if running is not None:
        trials = sorted([*trials, running], key=lambda trial: trial.size)
    if not trials or most < 1:
        return []
    knee = knee_of(screen)
    table = [cells(layout, trial, screen, running is trial, knee is trial) for trial in trials]
    widths = {
        name: max(len(name), *(row[name].cell_len for row in table)) if name else LEAST_BAR
        for name in COLUMNS
        if not name or any(row[name].plain for row in table)
    }
    for name in sorted(COLUMNS, key=lambda name: -COLUMNS[name]):
        if sum(widths.values()) + 2 * (len(widths) - 1) > layout.width and COLUMNS[name]:
            widths.pop(name, None)
    if BAR in widths:
        room = layout.width - sum(widths.values()) - 2 * (len(widths) - 1)
        widths[BAR] = min(WIDEST_BAR, widths[BAR] + room)
        for row, trial in zip(table, trials, strict=True):
            row[BAR] = bar(layout, trial, screen, widths[BAR])
    heading = {n: Text(n, "dim", justify="left" if n == "verdict" else None) for n in COLUMNS}
    return [
        in_columns(widths, heading),
        *(trial_row(trial, row, widths) for trial, row in zip(trials, table, strict=True)),
    ]


def in_columns(widths: Mapping[str, int], row: Mapping[str, Text]) -> Text:
    cells = [row[name].copy() for name in widths]
    for cell, width in zip(cells, widths.values(), strict=True):
        cell.align("left" if cell.justify == "left" else "right", width)
    return Text("  ").join(cells)


def trial_row(trial: Trial, row: Mapping[str, Text], widths: Mapping[str, int]) -> Text:
    """The cells; a probe that was not measured has its reason in place of the missing ones."""
    reason = reason_cell(trial)  # cut to its width
    first, *rest = [n for n in widths if n not in ("size", "verdict", "time")] or [""]
    if trial.peak is None and reason is not None and first in widths:
        room = widths[first] + sum(widths[name] + 2 for name in rest)
        widths = {n: w for n, w in widths.items() if n not in rest} | {first: room}
        row = {**row, first: reason}
    return in_columns(widths, row)


def reason_cell(trial: Trial) -> Text | None:
    reason = reason_words(trial, short=True)
    return None if reason is None else Text(reason, "dim", justify="left", overflow="ellipsis")


def running_trial(screen: Screen) -> Trial | None:
    """The probe that runs now, with its highest sample so far as its peak."""
    if screen.running is None:
        return None
    seen = [device for device in memories(screen) if device.peak and device.budget]
    tightest = max(seen, key=lambda d: (d.peak or 0) - (d.budget or 0), default=None)
    peak = None if tightest is None else tightest.peak
    return Trial(size=screen.running, verdict=Verdict.FITS, peak=peak, seconds=0.0)


def knee_of(screen: Screen) -> Trial | None:
    """After the search the smallest size that is as fast as any; None where that is the answer."""
    answer = screen.answer_trial
    if answer is None:
        return None
    knee = choose(screen.trials, "throughput")
    is_known = knee is not None and knee.samples_per_second and knee.sequences < answer.sequences
    return knee if is_known else None


def nearest(screen: Screen, most: int) -> list[Trial]:
    """The trials nearest to the sizes in doubt, by size."""
    low, high = screen.low or 0, screen.high or 0
    near = sorted(screen.trials, key=lambda t: low - t.size if t.size <= low else t.size - high)
    return sorted(near[: max(0, most)], key=lambda t: t.size)


def cells(
    layout: Layout, trial: Trial, screen: Screen, running: bool, knee: bool
) -> dict[str, Text]:
    budget = budget_of(trial, screen.budgets)
    style = "red" if trial.verdict is Verdict.OOM else distance_style(trial.peak or 0, budget)
    row = {name: Text() for name in COLUMNS}
    size = micro_batches(trial.size, trial.sizes)
    if len(size) > WIDEST_SIZE:
        size = f"{min(trial.sizes):,}–{max(trial.sizes):,}"
    row["size"] = Text(size, "bold" if trial is screen.answer_trial else "")
    name, word = ("running", "running") if running else (trial.verdict.name, verdict_word(trial))
    glyph = getattr(layout.glyphs, name.lower())
    row["verdict"] = Text(f"{glyph} {word}", "bold" if running else style, justify="left")
    if knee:
        row["verdict"].append(", knee", "dim")
    if trial.peak is not None:
        row["peak"] = Text(format_bytes(trial.peak, like=budget), "dim" if running else "")
        if budget is not None:
            row["of budget"] = Text(share(trial.peak, budget), "dim" if running else style)
    speeds = [t.samples_per_second for t in screen.trials if t.samples_per_second is not None]
    if trial.samples_per_second is not None:
        row["samples/s"] = Text(figure(trial.samples_per_second, like=max(speeds)))
    spread = (give_or_take(trial) or "").replace("±", layout.glyphs.give_or_take)
    row["spread"] = Text(spread, "dim")
    if trial.tokens_per_second is not None:
        row["tokens/s"] = Text(f"{trial.tokens_per_second:,.0f}")
    if not running:
        row["time"] = Text(duration(trial.seconds), "dim")
    return row


def bar(layout: Layout, trial: Trial, screen: Screen, width: int) -> Text:
    """The peak against the budget, marked at one column in all rows; or the reason of a failure."""
    if (reason := reason_cell(trial)) is not None:
        return reason
    budget = budget_of(trial, screen.budgets)
    if trial.peak is None or not budget:
        return Text()
    style = "dim" if trial.size == screen.running else distance_style(trial.peak, budget)
    mark = round(width * 0.72)
    return peak_bar(layout.glyphs, width, share=trial.peak / budget, mark=mark, style=style)


def fit_rows(layout: Layout, screen: Screen) -> list[Text]:
    line = fit_line(screen.trials)
    if line is None:
        return []
    fixed = f"{format_bytes(line.fixed)} + " if line.fixed >= 0 else ""
    parts = [Part(Text(f"peak ≈ {fixed}{format_bytes(line.slope)} × size"))]
    if line.trials > 2:
        within = f"within {100 * line.error:.1f} % of {line.trials} trials"
        parts.append(Part(Text(within, "dim"), 2))
    if screen.budgets and screen.tuned is None:
        budget = min(device.budget for device in screen.budgets)
        parts.append(Part(pair("meets the budget at", str(line.reaches(budget))), 1))
    return [labelled(layout, "fit", *parts)]
