"""Two processes for all tests of the trainer that ask what ranks compute together."""

import fcntl
import os
from pathlib import Path

import pytest

from tests.support.commands import two_processes
from tests.support.runs import rows_file


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `pair_script` has filled, once for all processes of pytest."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # each process has a folder in it
    folder, done = shared / "pair", shared / "pair" / "done"
    folder.mkdir(exist_ok=True)
    with (shared / "pair.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            rows_file(folder / "rows.jsonl", 24)
            two_processes("tests.support.pair_script", str(folder))
            done.touch()
    return folder
