"""Amounts of memory and shares, read from what people type and written for people to read."""

import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from autotune.errors import UsageError
from autotune.units import UNITS, check_fraction, format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("20GiB", 20 * 2**30),
        ("512 MB", 512 * 10**6),
        ("1.5g", 3 * 2**29),
        (" 2TiB ", 2 * 2**40),
        ("7k", 7 * 1024),
        ("123", 123),
        ("123B", 123),
    ],
)
def test_amounts_are_read_in_every_usual_spelling(text: str, amount: int) -> None:
    """`GB` is decimal, `GiB` and the bare letter binary; case and blanks do not matter."""
    assert parse_bytes(text) == amount


@given(st.integers(1, 1000), st.sampled_from(sorted(UNITS)), st.sampled_from(["", " "]))
def test_every_unit_multiplies(number: int, unit: str, gap: str) -> None:
    """Whole numbers of a unit are exact."""
    assert parse_bytes(f"{number}{gap}{unit.lower()}") == number * UNITS[unit]


NONE_OF_THEM = ["20XB", "", "GiB", "-1GiB", "1e9", "nan", "20 GiB more", "0x10", "1,5GiB", "1.GiB"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        *[(text, "not an amount of memory") for text in NONE_OF_THEM],
        *[(text, "no memory at all") for text in ("0", "0GiB", "0.2B")],
        # also where a floating-point number would overflow
        *[(text, "more memory than there is") for text in ("8388608TiB", "9" * 400)],
    ],
)
def test_what_is_no_amount_is_refused_with_an_example(text: str, fault: str) -> None:
    """The message quotes what was written; less than one byte is none."""
    with pytest.raises(UsageError) as caught:
        parse_bytes(text)

    assert str(caught.value) == f"{text!r} is {fault}; write it like 20GiB or 512MB"


@given(st.floats(min_value=0, max_value=1, exclude_min=True))
def test_a_share_of_a_whole_is_kept_as_it_is(value: float) -> None:
    """Above 0, and 1 itself."""
    assert check_fraction(value, "--target-vram") == value


@given(st.floats())
@example(math.nan)  # compares as false with everything
def test_what_is_no_share_is_refused(value: float) -> None:
    """Negative, above one, infinite, or not a number."""
    assume(not 0 < value <= 1)

    with pytest.raises(UsageError) as caught:
        check_fraction(value, "--target-ram")

    assert str(caught.value) == (
        f"--target-ram {value:g} is not a share of memory; "
        f"give a fraction above 0 and at most 1, like 0.6 for 60 %"
    )


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (412 * 2**20, "412 MiB"),
        (1.07 * 2**30, "1.07 GiB"),
        (23.46 * 2**30, "23.5 GiB"),
        (140 * 2**30, "140 GiB"),
        (-3 * 2**30, "-3.00 GiB"),
    ],
)
def test_bytes_are_shown_with_about_three_digits(amount: float, text: str) -> None:
    """In the largest unit of which there is about one."""
    assert format_bytes(amount) == text


def test_a_column_has_one_unit() -> None:
    """Amounts are shown in the unit of the one they stand beside."""
    assert format_bytes(2**29, like=20 * 2**30) == "0.5 GiB"


@given(st.integers(1, 2**50))
def test_what_is_shown_is_read_back_within_its_digits(amount: int) -> None:
    """Two significant digits at least: 5 % off at most."""
    assert parse_bytes(format_bytes(amount)) == pytest.approx(amount, rel=0.05)
