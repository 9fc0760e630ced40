"""The README says what the files in bench/results say, and the pictures that it shows are there."""

import re
from pathlib import Path

from bench.table import table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_measured_figure_is_the_files() -> None:
    """`python -m bench.table` prints the table that the README shows."""
    assert table() in README


def test_every_file_that_it_points_to_is_there() -> None:
    """Pictures and pages."""
    targets = re.findall(r"\]\(([^)#]+)\)", README)

    assert targets
    assert all((ROOT / target).is_file() for target in targets if "://" not in target)
