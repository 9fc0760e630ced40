"""Amounts as people write them: `20GiB`, `0.6`, and back. The code holds bytes and shares as numbers."""

import re
from decimal import Decimal

from autotune.errors import UsageError

UNITS = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
    "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40,
}  # fmt: skip


def parse_bytes(text: str) -> int:
    """Bytes from `20GiB`, `512 MB`, `1.5g` or a bare number.

    Raises:
        UsageError: not a positive number with a known unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS:
        raise UsageError(f"{text!r} is not an amount of memory", "write it like 20GiB or 512MB")
    amount = int(Decimal(match[1]) * UNITS[match[2].upper()])
    if not 0 < amount < 2**63:
        size = "more memory than there is" if amount else "no memory at all"
        raise UsageError(f"{text!r} is {size}", "write it like 20GiB or 512MB")
    return amount


def check_fraction(value: float, name: str) -> float:
    """The value, when it is a share of a whole: 0 < value <= 1.

    Raises:
        UsageError: outside that range (nan included).
    """
    if not 0 < value <= 1:
        raise UsageError(
            f"{name} {value:g} is not a share of memory",
            "give a fraction above 0 and at most 1, like 0.6 for 60 %",
        )
    return value


def format_bytes(value: float, like: float | None = None) -> str:
    """Bytes as `1.07 GiB` or `412 MiB`; in the unit and with the decimals of `like`, for columns."""
    unit, size, digits = scale(abs(value if like is None else like))
    return f"{value / size:.{digits}f} {unit}"


def scale(measure: float) -> tuple[str, int, int]:
    """The unit for that many bytes, its size in bytes, and the decimals to show."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if measure >= 0.9765625 * size:  # 1000 of the next smaller unit
            measure /= size
            digits = 2 if measure < 10 else 1 if measure < 100 else 0
            if unit != "GiB" and measure >= 10:
                digits = 0
            return unit, size, digits
    return "B", 1, 0
