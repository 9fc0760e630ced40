"""The README says what the files in bench/results say, and the pictures that it shows are there."""

import re
from pathlib import Path

from bench import peers, simulate
from bench.table import docs, read, table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_every_measured_figure_is_the_files() -> None:
    """`python -m bench.table` prints the table that the README shows."""
    assert table() in README


def test_the_peers_table_is_the_files() -> None:
    """What `make bench` prints of ours beside the other tuners."""
    assert peers.table(read("peers-cpu")) in README


def test_the_simulated_table_is_the_files() -> None:
    """On its own page; the README quotes one figure of it."""
    document = read("search-simulated")
    probes = document["algorithms"]["chatlm"]["all"]["probes_mean"]

    assert simulate.table(document) in (ROOT / "docs" / "search.md").read_text()
    assert f"after {probes:.1f} on average in simulation" in README


def test_the_trainers_tables_are_the_files() -> None:
    """On their own page, each from the file that is named over it."""
    page = (ROOT / "docs" / "training.md").read_text()

    for part in docs().split("\n\n"):
        assert part in page


def test_every_file_that_it_points_to_is_there() -> None:
    """Pictures and pages."""
    targets = re.findall(r"\]\(([^)#]+)\)", README)

    assert targets
    assert all((ROOT / target).is_file() for target in targets if "://" not in target)
