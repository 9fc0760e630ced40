"""Numbers and names as the screen and the plain lines write them. No rich here."""

import math

from autotune.verdict import Verdict

VERDICTS = {Verdict.FITS: "fits", Verdict.OVER: "over", Verdict.OOM: "out of memory"}

ASCII = str.maketrans({
    "…": "..", "×": "x", "≈": "~", "→": "->", "·": "-", "°": " ", "—": "-", "–": "-",
    "✓": "+", "▲": "^", "✗": "x", "‘": "'", "’": "'", "“": '"', "”": '"', "≤": "<=", "≥": ">=",
})  # fmt: skip


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


def counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


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
