"""Numbers, names and verdicts as text, for the screen and for plain lines. It does not use rich."""

import math
from collections.abc import Sequence

from autotune.cause import Cause
from autotune.readings import Measured
from autotune.terminal import spaced
from autotune.trial import Trial
from autotune.units import format_bytes, scale
from autotune.verdict import Verdict
from dashboard.state import Screen
from trainer.events import Evaluated, Tokenising

VERDICTS = {Verdict.FITS: "fits", Verdict.OVER: "over", Verdict.OOM: "out of memory"}
NOISY = 0.05
"""A speed is shown with its spread from this spread on."""


def answer_words(screen: Screen) -> list[str]:
    """`["12 + 6"]`, or why there is no answer; with `best so far, interrupted` after Ctrl-C."""
    assert screen.tuned is not None
    is_cut_off = screen.tuned.interrupted
    if screen.answer is None:
        return ["interrupted before any size fitted" if is_cut_off else "no size fits"]
    trial = screen.answer_trial
    size = micro_batches(screen.answer, None if trial is None else trial.sizes)
    return [size, "best so far, interrupted"] if is_cut_off else [size]


def tokenise_words(event: Tokenising) -> str:
    """`1,200,000 of 2,000,000 rows, 45,000 rows/s`."""
    of_all = "" if event.total is None else f" of {event.total:,}"
    speed = f", {event.rows / event.seconds:,.0f} rows/s" if event.seconds > 0 else ""
    return f"{event.rows:,}{of_all} rows{speed}"


def verdict_word(trial: Trial) -> str:
    """`fits`, `over`, `out of memory`; `size limit` where the size failed for another reason."""
    is_size_limit = trial.failure is not None and trial.failure.cause is Cause.SIZE_LIMIT
    return "size limit" if is_size_limit else VERDICTS[trial.verdict]


def reason_words(trial: Trial, *, short: bool = False) -> str | None:
    """Why the verdict is not that of peak and budget; `short` for a column that a failure leaves empty."""
    if (failure := trial.failure) is None:
        return None if short else trial.reason
    if short and failure.cause is Cause.HARD_LIMIT:
        return "stopped at the hard limit"
    return clean(failure.first_line if failure.cause is Cause.SIZE_LIMIT else str(failure))


def give_or_take(trial: Trial) -> str | None:
    """`±3 %`: half the spread of the speed; None below `NOISY`."""
    if trial.speed_spread is None or trial.speed_spread < NOISY:
        return None
    return f"±{50 * trial.speed_spread:.0f} %"


def peak_words(trial: Trial) -> tuple[str, str] | None:
    """What the peak of the tightest device consists of, in full and shorter; None where nothing tells.

    `12.0 GiB = tensors 10.1 + cache 1.4 + context 0.5` on a GPU, without parts that round to zero;
    `603 MiB, beside it libraries 277 MiB and mapped files 110 MiB` on a CPU.
    """
    if trial.tightest >= len(trial.measured):
        return None
    device = trial.measured[trial.tightest]
    if device.reserved is None or device.allocated is None:
        return outside_words(device)
    parts = {
        "tensors": device.allocated,
        "cache": device.reserved - device.allocated,
        "context": device.context,
        "outside torch": device.peak - device.context - device.reserved,
    }
    if min(parts.values()) < 0:
        return None  # the readings contradict one another
    _, unit, digits = scale(device.peak)
    amounts = {name: round(part / unit, digits) for name, part in parts.items()}
    where = f" on device {trial.tightest}" if len(trial.measured) > 1 else ""
    shown = " + ".join(f"{name} {n:.{digits}f}" for name, n in amounts.items() if n)
    return f"{format_bytes(device.peak)}{where} = {shown}", shown


def outside_words(device: Measured) -> tuple[str, str] | None:
    """What else a CPU's process holds, after the peak and alone; None where it is not told."""
    outside = device.outside
    if not outside.libraries:
        return None
    libraries, mapped = format_bytes(outside.libraries), format_bytes(outside.mapped)
    if device.context:
        shown = f"of it libraries {libraries}, beside it mapped files {mapped}"
    else:
        shown = f"beside it libraries {libraries} and mapped files {mapped}"
    return f"{format_bytes(device.peak)}, {shown}", shown


def figure(value: float, like: float | None = None) -> str:
    """Three significant digits: `0.0123`, `52.1`, `13,300`; for columns with the decimals of `like`."""
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
    """`89 %`; near 100 with one decimal, so that 100.3 % does not read as 100 %."""
    if whole <= 0:
        return "-"
    percent = 100 * part / whole
    return f"{percent:.{int(0 < abs(percent - 100) < 0.5)}f} %"


def duration(seconds: float) -> str:
    """`4.2 s`, `1 m 12 s`, `2 h 05 m`."""
    return f"{seconds:.1f} s" if seconds < 59.95 else clock(seconds)


def clock(seconds: float) -> str:
    """The same in whole seconds, for a value that ticks."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} m"


def percent(part: float) -> str:
    """`60 %`, `62.5 %`: a share with at most three digits."""
    return f"{100 * part:.3g} %"


def micro_batches(largest: int, sizes: Sequence[int] | None) -> str:
    """`1,024`, or `12 + 6` where the devices' sizes differ."""
    is_even = len(set(sizes or ())) < 2
    return f"{largest:,}" if is_even else " + ".join(f"{size:,}" for size in sizes or ())


def scores_words(event: Evaluated) -> list[tuple[str, str]]:
    """Label and value: `BLEU` `83.8 (zh)`, `exact` `87.5 %`, `chrF` `89.3`, `of` `200 rows`; empty without answers."""
    if event.bleu is None or event.chrf is None or event.exact_match is None:
        return []
    return [
        ("BLEU", f"{event.bleu:.1f} ({event.words})"),
        ("exact", f"{100 * event.exact_match:.1f} %"),
        ("chrF", f"{event.chrf:.1f}"),
        ("of", counted(event.generated_rows, "row")),
    ]


def shortened(text: str, most: int) -> str:
    """One printable line of at most `most` characters, cut anywhere: Chinese has no spaces."""
    line = clean(text)
    return line if len(line) <= most else f"{line[: most - 1]}…"


def counted(number: int, thing: str, ending: str = "s") -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}{ending}"


def clean(text: str) -> str:
    """One line that cannot steer the terminal, with single spaces."""
    return " ".join(spaced(text).split())
