"""The README says what the files in bench/results say, and the pictures that it shows are there."""

import re
from pathlib import Path

import pytest

from bench import peers, simulate
from bench.table import docs, read, table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


SIMULATED = read("search-simulated")


@pytest.mark.parametrize(
    ("page", "tables"),
    [
        ("README.md", [table(), peers.table(read("peers-cpu"))]),
        (
            "docs/search.md",
            [
                simulate.table(SIMULATED),
                simulate.real_table(SIMULATED),
                simulate.frontier_table(SIMULATED),
            ],
        ),
        ("docs/training.md", docs().split("\n\n")),
    ],
)
def test_every_measured_figure_is_the_files(page: str, tables: list[str]) -> None:
    """`python -m bench.table` prints the tables that the pages show."""
    text = (ROOT / page).read_text()

    assert [part for part in tables if part not in text] == []


def test_the_simulated_figure_is_the_files() -> None:
    """The README quotes one of its table."""
    probes = SIMULATED["algorithms"]["chatlm"]["all"]["probes_mean"]

    real = SIMULATED["real_cards"]["algorithms"]["chatlm"]["probes_mean"]

    assert f"after {probes:.1f} on average in simulation, and {real:.1f} on memory" in README


def test_every_file_that_it_points_to_is_there() -> None:
    """Pictures and pages."""
    targets = re.findall(r"\]\(([^)#]+)\)", README)

    assert targets
    assert all((ROOT / target).is_file() for target in targets if "://" not in target)
