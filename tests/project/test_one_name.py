"""`chatlm` is the one name to import, and it never runs another distribution's code for its own."""

import subprocess
import sys
from pathlib import Path

import pytest

import autotune
import chatlm

ROOT = Path(__file__).parents[2]


def run(*arguments: str, path: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Python with these arguments; `path` comes before our own folder in the search for modules."""
    folders = [str(ROOT)] if path is None else [str(path), str(ROOT)]
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        env={"PYTHONPATH": ":".join(folders), "PATH": ""},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_the_tuner_is_the_one_of_autotune() -> None:
    """One object under two names."""
    assert chatlm.find_micro_batch is autotune.find_micro_batch


def test_importing_it_loads_no_torch() -> None:
    """A script that only asks for the version waits for nothing."""
    done = run("-c", "import sys, chatlm\nassert not {'torch', 'autotune'} & set(sys.modules)")

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["chatlm", "chatlm.trainer"])
def test_it_runs_as_a_module(module: str) -> None:
    """The command, and what launchers start."""
    done = run("-m", module, "--help")

    assert done.returncode == 0, done.stderr
    assert "--help" in done.stdout


@pytest.mark.parametrize("name", chatlm.PARTS)
@pytest.mark.parametrize("module", ["chatlm", "chatlm.trainer"])
def test_a_foreign_module_of_a_part_s_name_is_named_and_not_run(
    name: str, module: str, tmp_path: Path
) -> None:
    """coqui's `trainer` is one; it must not be imported to find that out."""
    foreign = tmp_path / name
    foreign.mkdir()
    (foreign / "__init__.py").write_text("print('foreign code ran')\n")

    done = run("-m", module, "--version", path=tmp_path)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        f"chatlm: the module {name} is not chatlm's: {foreign}/__init__.py"
    )
    assert "Traceback" not in done.stderr
