"""Numbers, names and verdicts as the screen and the plain lines write them. No rich here."""

import math
from collections.abc import Sequence

from autotune.cause import Cause
from autotune.trial import Trial
from autotune.units import format_bytes
from autotune.verdict import Verdict
from trainer.events import Evaluated, Tokenising

VERDICTS = {Verdict.FITS: "fits", Verdict.OVER: "over", Verdict.OOM: "out of memory"}
NOISY = 0.05
"""A speed whose steps lie further apart than this share is shown with its spread."""

ASCII = str.maketrans({
    "…": "..", "×": "x", "≈": "~", "→": "->", "·": "-", "°": " ", "—": "-", "–": "-",
    "✓": "+", "▲": "^", "✗": "x", "‘": "'", "’": "'", "“": '"', "”": '"', "≤": "<=", "≥": ">=", "±": "+-",
})  # fmt: skip


def tokenise_words(event: Tokenising) -> str:
    """`1,200,000 of 2,000,000 rows, 45,000 rows/s`."""
    of_all = "" if event.total is None else f" of {event.total:,}"
    speed = f", {event.rows / event.seconds:,.0f} rows/s" if event.seconds > 0 else ""
    return f"{event.rows:,}{of_all} rows{speed}"


def verdict_word(trial: Trial) -> str:
    """`fits`, `over`, `out of memory`; `no size` where the size failed for another reason."""
    if trial.failure is not None and trial.failure.cause is Cause.SIZE_LIMIT:
        return "no size"
    return VERDICTS[trial.verdict]


def reason_words(trial: Trial) -> str | None:
    """Why it was not measured in full; the verdict's word says the rest."""
    if trial.failure is None:
        return None
    is_no_size = trial.failure.cause is Cause.SIZE_LIMIT
    return clean(trial.failure.first_line if is_no_size else str(trial.failure))


def short_reason(trial: Trial) -> str | None:
    """The same for a column."""
    if trial.failure is not None and trial.failure.cause is Cause.HARD_LIMIT:
        return "stopped by the guard"
    return reason_words(trial)


def give_or_take(trial: Trial) -> str | None:
    """`±3 %`: how far to each side the speed was off its mean; None where that is little."""
    if trial.speed_spread is None or trial.speed_spread < NOISY:
        return None
    return f"±{50 * trial.speed_spread:.0f} %"


def peak_words(trial: Trial) -> str | None:
    """`12.0 GiB = tensors 10.1 + cache 1.4 + context 0.5`: what the tightest device's peak was made of.

    None where nothing tells, as on a CPU. A part that would show as nothing is left out.
    """
    if trial.tightest >= len(trial.measured):
        return None
    device = trial.measured[trial.tightest]
    if device.reserved is None or device.allocated is None:
        return None
    parts = {
        "tensors": device.allocated,
        "cache": device.reserved - device.allocated,
        "context": device.context,
        "outside torch": device.peak - device.context - device.reserved,
    }
    if min(parts.values()) < 0:
        return None  # no such sum: the readings contradict one another
    amounts = {
        name: format_bytes(part, like=device.peak).split()[0] for name, part in parts.items()
    }
    where = f" on device {trial.tightest}" if len(trial.measured) > 1 else ""
    shown = " + ".join(f"{name} {amount}" for name, amount in amounts.items() if float(amount))
    return f"{format_bytes(device.peak)}{where} = {shown}"


def trial_size(trial: Trial) -> str:
    """`1,024`, or `12 + 6` where the devices' sizes differ."""
    return micro_batches(trial.size, None if trial.is_even else trial.sizes)


def figure(value: float, like: float | None = None) -> str:
    """Three digits that matter: `0.0123`, `52.1`, `13,300`; with the decimals of `like`, for columns."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value if like is None else like)
    if size >= 100:
        return f"{value:,.0f}"
    if size == 0 or size >= 0.001:
        digits = 2 if size == 0 else 2 - math.floor(math.log10(size))
        return f"{value:.{digits}f}"
    return f"{value:.2e}"


def share(part: float, whole: float) -> str:
    """`89 %`; next to 100 with a decimal, so that what is over does not read as if it fitted."""
    if whole <= 0:
        return "-"
    percent = 100 * part / whole
    return f"{percent:.{int(0 < abs(percent - 100) < 0.5)}f} %"


def duration(seconds: float) -> str:
    """`4.2 s`, `1 m 12 s`, `2 h 05 m`."""
    return f"{seconds:.1f} s" if seconds < 59.95 else clock(seconds)


def clock(seconds: float) -> str:
    """The same in whole seconds, for what ticks."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} m"


def percent(part: float) -> str:
    """`60 %`, `62.5 %`: a share as the user gave it."""
    return f"{100 * part:.3g} %"


def micro_batches(largest: int, sizes: Sequence[int] | None) -> str:
    """`1,024`, or `12 + 6` where the devices' sizes differ."""
    return " + ".join(f"{size:,}" for size in sizes or (largest,))


def scores_words(event: Evaluated) -> list[str]:
    """`BLEU 83.8 (zh)`, `exact 87.5 %`, `chrF 89.3`, `of 200 rows`; none where nothing was answered."""
    if event.bleu is None or event.chrf is None or event.exact_match is None:
        return []
    return [
        f"BLEU {event.bleu:.1f} ({event.words})",
        f"exact {100 * event.exact_match:.1f} %",
        f"chrF {event.chrf:.1f}",
        f"of {counted(event.generated_rows, 'row')}",
    ]


def shortened(text: str, most: int) -> str:
    """One printable line of at most that many characters: Chinese has no spaces to break at."""
    line = clean(text)
    return line if len(line) <= most else f"{line[: most - 1]}…"


def counted(number: int, thing: str, ending: str = "s") -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}{ending}"


def clean(text: str) -> str:
    """One printable line: names and messages from outside must not steer the terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def encodable(text: str, encoding: str) -> str:
    """The text as this encoding can write it: our own glyphs in ASCII, the rest as `?`."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(ASCII).encode(encoding, "replace").decode(encoding)
    return text
