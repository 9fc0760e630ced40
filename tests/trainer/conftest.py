"""Two processes for all tests of the trainer that ask what ranks compute together."""

from pathlib import Path

import pytest

from tests.support import diverged_script
from tests.support.commands import two_processes
from tests.support.runs import rows_file
from tests.support.shared import once


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `pair_script` has filled."""

    def make(folder: Path) -> None:
        rows_file(folder / "rows.jsonl", 24)
        diverged_script.prepare(folder)
        two_processes("tests.support.pair_script", str(folder))

    return once(tmp_path_factory, "pair", make)
