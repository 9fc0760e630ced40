"""The README says what the files in bench/results say, and the pictures that it shows are there."""

import re
from pathlib import Path

import pytest

from bench.table import MARKED, PAGES, TABLES, filled, sentences

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_measured_figure_is_the_files(page: Path) -> None:
    """`python -m bench.table` writes the tables, and the figures within sentences."""
    text = page.read_text()

    assert filled(text) == text


def test_every_table_of_figures_is_on_a_page() -> None:
    """Between its marks, once."""
    names = [found["name"] for page in PAGES for found in MARKED.finditer(page.read_text())]

    assert sorted(names) == sorted(TABLES)


def test_every_sentence_with_a_figure_is_on_a_page() -> None:
    """Words that were changed would leave their figure behind."""
    text = "".join(page.read_text() for page in PAGES)

    assert [pattern for pattern in sentences() if not re.search(pattern, text)] == []


def test_every_file_that_it_points_to_is_there() -> None:
    """Pictures and pages."""
    targets = re.findall(r"\]\(([^)#]+)\)", README)

    assert targets
    assert all((ROOT / target).is_file() for target in targets if "://" not in target)
