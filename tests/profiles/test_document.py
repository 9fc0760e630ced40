"""TOML files as people, disks and pipes leave them; profiles and run files are read by the same code."""

from pathlib import Path

import pytest

from profiles.document import MOST_LEVELS, MOST_VALUES, parse_toml, read_file
from tests.support.odd_files import MALFORMED, UNREADABLE


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_is_no_readable_file_is_said_and_never_waited_for(tmp_path: Path, kind: str) -> None:
    make, reason = UNREADABLE[kind]
    make(tmp_path / "x")

    with pytest.raises(OSError) as caught:  # noqa: PT011  the reason follows
        read_file(tmp_path / "x")

    assert caught.value.strerror == reason


@pytest.mark.parametrize("kind", MALFORMED)
def test_what_no_settings_can_be_is_said_in_a_short_line(tmp_path: Path, kind: str) -> None:
    """Also a number, a depth or a key on which tomllib fails in its own way, or takes a gigabyte."""
    make, reason = MALFORMED[kind]
    make(tmp_path / "x")

    with pytest.raises(ValueError) as caught:  # noqa: PT011  the reason follows
        parse_toml(read_file(tmp_path / "x"))

    assert str(caught.value).startswith(reason[:60])
    assert len(str(caught.value)) < 200


def test_a_name_with_a_nul_character_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="NUL") as caught:
        read_file(tmp_path / "a\0b")

    assert caught.value.strerror == "its name has a NUL character"


def test_what_is_within_the_bounds_is_read_whole() -> None:
    """Dots in texts are no keys; the largest numbers of 64 bits, inf and nan are numbers."""
    deep = "[" * (MOST_LEVELS - 1) + "]" * (MOST_LEVELS - 1)
    dotted = ".".join("a" * MOST_LEVELS)
    text = (
        f"most = {2**63 - 1}\nleast = {-(2**63)}\nreal = [inf, 1e999]\ndeep = {deep}\n"
        f"text = '{'a.' * 100}'\n{dotted} = 1\nmany = [{'0,' * (MOST_VALUES // 2)}]\n"
    )

    found = parse_toml(text.encode())

    assert (found["most"], found["least"]) == (2**63 - 1, -(2**63))
    assert found["real"] == [float("inf")] * 2
    assert found["text"] == "a." * 100
    assert len(found["many"]) == MOST_VALUES // 2
