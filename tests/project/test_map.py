"""The map of CONTRIBUTING.md is today's, and the files that pages name are there."""

import re

import pytest

from bench.map import PAGE, ROOT, replaced


def test_the_map_is_drawn_from_the_code_of_today() -> None:
    """`python -m bench.map` writes it."""
    page = PAGE.read_text()

    assert replaced(page) == page


@pytest.mark.parametrize("page", ["architecture.md", "cases.md"])
def test_every_file_of_a_page_is_there(page: str) -> None:
    """A trip through files of the past leads nowhere."""
    named = re.findall(r"`([\w/]+\.py)`", (ROOT / "docs" / page).read_text())

    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []
