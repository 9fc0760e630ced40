"""The rules of the suite itself: a quick run starts no process, and a failed test leaves none."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
LEAVES_A_CHILD = """
import subprocess, sys
from pathlib import Path

def test_leaves_a_child():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    subprocess.run("sleep 300 & echo $! > orphan", shell=True)
    Path("pid").write_text(str(child.pid))
    assert False

def test_starts_nothing():
    pass
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A suite of its own with our conftest and two tests."""
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_two.py").write_text(LEAVES_A_CHILD)
    return tmp_path


def run(suite: Path, *arguments: str) -> str:
    """What pytest prints of that suite."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=suite, capture_output=True, text=True, timeout=300).stdout


def test_a_failed_test_leaves_no_process_behind(suite: Path) -> None:
    """It would hold memory that the next test measures; one whose parent has ended counts too."""
    printed = run(suite)

    assert "1 failed, 1 passed" in printed
    assert not psutil.pid_exists(int((suite / "pid").read_text()))
    assert not psutil.pid_exists(int((suite / "orphan").read_text()))


def test_a_quick_run_skips_what_starts_a_process(suite: Path) -> None:
    """Before it has started."""
    printed = run(suite, "--quick")

    assert "1 passed, 1 skipped" in printed
    assert not (suite / "pid").exists()
