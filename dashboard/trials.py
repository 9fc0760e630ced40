"""The search as it is drawn: the bracket, the trials by size, and the line that they lie on."""

from rich.text import Text

from autotune.quantity import format_bytes
from autotune.trial import Trial
from autotune.verdict import Verdict
from dashboard.bars import distance_style, peak_bar
from dashboard.fit import fit_line
from dashboard.memory import memories
from dashboard.rows import Part, Pen, in_columns, labelled, pair
from dashboard.state import Screen, budget_of
from dashboard.words import VERDICTS, clean, duration, figure, share

BAR = ""
COLUMNS = {
    "size": 0, "verdict": 0, "peak": 1, "of budget": 3, BAR: 5, "samples/s": 2, "tokens/s": 6,
    "time": 4,
}  # fmt: skip
"""In order; the highest number goes first when the terminal is narrow, 0 stays."""
LEAST_BAR = 12
WIDEST_BAR = 42


def bracket_row(pen: Pen, screen: Screen) -> Text:
    """What is still in doubt, or what was found."""
    if screen.tuned is not None:
        return outcome_row(pen, screen)
    assert screen.tuning is not None
    ceiling = screen.tuning.ceiling
    low = max(1, screen.low or 0)
    high = ceiling if screen.high is None else max(low, screen.high - 1)
    parts = [Part(Text(sizes(low, high), "bold"))]
    if (low, high) != (1, ceiling):
        parts.append(Part(pair("of", sizes(1, ceiling)), 2))
    if screen.running is not None:
        parts.append(Part(pair("running", f"{screen.running:,}"), 1))
    return labelled(pen, "in doubt", *parts)


def outcome_row(pen: Pen, screen: Screen) -> Text:
    assert screen.tuned is not None
    glyphs, interrupted = pen.glyphs, screen.tuned.interrupted
    if screen.answer is None:
        words = "interrupted before any size fitted" if interrupted else "no size fits"
        return labelled(pen, "answer", Part(Text(f"{glyphs.oom} {words}", "bold")))
    parts = [Part(Text(f"{glyphs.fits} {screen.answer:,}", "bold green"))]
    if interrupted:
        parts.append(Part(Text("best so far, interrupted"), 1))
    for trial in screen.trials:
        budget = budget_of(trial, screen.budgets)
        if trial.size == screen.answer and trial.peak is not None and budget is not None:
            parts.append(Part(pair("holds", format_bytes(trial.peak)), 2))
            parts.append(Part(pair("headroom", format_bytes(budget - trial.peak)), 3))
    return labelled(pen, "answer", *parts)


def sizes(low: int, high: int) -> str:
    return f"{low:,} … {high:,}" if low < high else f"{low:,}"


def trial_rows(pen: Pen, screen: Screen, most: int) -> list[Text]:
    """A heading and at most `most` rows below it, by size, so that the bars draw the curve."""
    running = running_trial(screen)
    trials = nearest(screen, most - (running is not None))
    if running is not None:
        trials = sorted([*trials, running], key=lambda trial: trial.size)
    if not trials or most < 1:
        return []
    table = [cells(pen, trial, screen, running is trial) for trial in trials]
    widths = {
        name: max(len(name), *(row[name].cell_len for row in table)) if name else LEAST_BAR
        for name in COLUMNS
        if not name or any(row[name].plain for row in table)
    }
    for name in sorted(COLUMNS, key=lambda name: -COLUMNS[name]):
        if sum(widths.values()) + 2 * (len(widths) - 1) > pen.width and COLUMNS[name]:
            widths.pop(name, None)
    if BAR in widths:
        room = pen.width - sum(widths.values()) - 2 * (len(widths) - 1)
        widths[BAR] = min(WIDEST_BAR, widths[BAR] + room)
        for row, trial in zip(table, trials, strict=True):
            row[BAR] = bar(pen, trial, screen, widths[BAR])
    heading = {name: Text(name, "dim") for name in COLUMNS}
    sides = [-width if name in ("verdict", BAR) else width for name, width in widths.items()]
    return [in_columns(sides, [row[name] for name in widths]) for row in (heading, *table)]


def running_trial(screen: Screen) -> Trial | None:
    """The probe that runs now, with the peak that the meters have seen of it so far."""
    if screen.running is None:
        return None
    seen = [device for device in memories(screen) if device.peak and device.budget]
    tightest = max(seen, key=lambda d: (d.peak or 0) - (d.budget or 0), default=None)
    peak = None if tightest is None else tightest.peak
    return Trial(size=screen.running, verdict=Verdict.FITS, peak=peak, seconds=0.0)


def nearest(screen: Screen, most: int) -> list[Trial]:
    """The trials that say most about what is in doubt, by size."""
    low, high = screen.low or 0, screen.high or 0

    def distance(trial: Trial) -> int:
        return low - trial.size if trial.size <= low else trial.size - high

    return sorted(sorted(screen.trials, key=distance)[: max(0, most)], key=lambda t: t.size)


def cells(pen: Pen, trial: Trial, screen: Screen, running: bool) -> dict[str, Text]:
    budget = budget_of(trial, screen.budgets)
    style = style_of(trial, budget)
    row = {name: Text() for name in COLUMNS}
    row["size"] = Text(f"{trial.size:,}", "bold" if trial.size == screen.answer else "")
    row["verdict"] = verdict(pen, trial, screen, style)
    if trial.peak is not None:
        row["peak"] = Text(format_bytes(trial.peak, like=budget), "dim" if running else "")
        if budget is not None:
            row["of budget"] = Text(share(trial.peak, budget), "dim" if running else style)
    speeds = [t.samples_per_second for t in screen.trials if t.samples_per_second is not None]
    if trial.samples_per_second is not None:
        row["samples/s"] = Text(figure(trial.samples_per_second, like=max(speeds)))
    if trial.tokens_per_second is not None:
        row["tokens/s"] = Text(f"{trial.tokens_per_second:,.0f}")
    if not running:
        row["time"] = Text(duration(trial.seconds), "dim")
    return row


def verdict(pen: Pen, trial: Trial, screen: Screen, style: str) -> Text:
    glyphs = pen.glyphs
    if trial.size == screen.running:
        return Text(f"{glyphs.running} running", "bold")
    glyph = {Verdict.FITS: glyphs.fits, Verdict.OVER: glyphs.over, Verdict.OOM: glyphs.oom}
    return Text(f"{glyph[trial.verdict]} {VERDICTS[trial.verdict]}", style)


def style_of(trial: Trial, budget: int | None) -> str:
    if trial.verdict is Verdict.OOM:
        return "red"
    return distance_style(trial.peak or 0, budget)


def bar(pen: Pen, trial: Trial, screen: Screen, width: int) -> Text:
    """The peak against the budget, whose mark is at one column in all rows; or why there is none."""
    if trial.reason is not None:
        words = Text(clean(trial.reason), "dim")
        words.truncate(width, overflow="ellipsis")
        return words
    budget = budget_of(trial, screen.budgets)
    if trial.peak is None or not budget:
        return Text()
    style = "dim" if trial.size == screen.running else style_of(trial, budget)
    mark = round(width * 0.72)
    return peak_bar(pen.glyphs, width, share=trial.peak / budget, mark=mark, style=style)


def fit_rows(pen: Pen, screen: Screen) -> list[Text]:
    """How memory grows with the size, once two trials tell."""
    line = fit_line(screen.trials)
    if line is None:
        return []
    sign = "+" if line.fixed >= 0 else "-"
    words = f"peak ≈ {format_bytes(abs(line.slope))} × size"
    if sign == "+":
        words = f"peak ≈ {format_bytes(line.fixed)} + {format_bytes(line.slope)} × size"
    parts = [Part(Text(words))]
    if line.trials > 2:
        within = f"within {100 * line.error:.1f} % of {line.trials} trials"
        parts.append(Part(Text(within, "dim"), 2))
    if screen.budgets and screen.tuned is None:
        budget = min(device.budget for device in screen.budgets)
        parts.append(Part(pair("meets the budget at", str(line.reaches(budget))), 1))
    return [labelled(pen, "fit", *parts)]
