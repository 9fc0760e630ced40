"""`chatlm` is the one name to import, and it never runs another distribution's code for its own."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import autotune
import chatlm

ROOT = Path(__file__).parents[2]
EDITABLE = """
import importlib.abc, importlib.machinery, runpy, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.PathFinder.find_spec(name, [{root!r}]) if path is None else None

sys.meta_path.append(Finder())
sys.argv[1:] = ["--help"]
sys.flags.safe_path or sys.path.insert(0, "")
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""
"""Runs a module as an editable install does: its finder comes last, after the current folder."""


def run(*arguments: str, path: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Python with these arguments; `path` comes before our own folder in the search for modules."""
    folders = [str(ROOT)] if path is None else [str(path), str(ROOT)]
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        env={"PYTHONPATH": ":".join(folders), "PATH": ""},
        capture_output=True, text=True, timeout=300,
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


def shadowed(name: str, folder: Path) -> Path:
    """A package of this name that says when it runs."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("print('foreign code ran')\n")
    return folder / name / "__init__.py"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *(("chatlm", name) for name in chatlm.PARTS),
        *(("chatlm.trainer", name) for name in ("autotune", "profiles", "trainer")),
    ],
)
def test_a_foreign_module_of_a_part_s_name_is_named_and_not_run(
    name: str, module: str, tmp_path: Path
) -> None:
    """coqui's `trainer` is one; it must not be imported to find that out."""
    foreign = shadowed(name, tmp_path)

    done = run("-m", module, "--version", path=tmp_path)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"chatlm: the module {name} is not chatlm's: {foreign}")
    assert "Traceback" not in done.stderr


def test_the_users_own_modules_hinder_only_what_needs_ours(tmp_path: Path) -> None:
    """A project has a `cli.py` of its own; the library and the trainer import none."""
    for name in ("cli", "dashboard"):
        shadowed(name, tmp_path)
    script = "from chatlm import find_micro_batch\nimport chatlm\nassert not hasattr(chatlm, 'x')"

    library = run("-c", script, path=tmp_path)
    trainer = run("-m", "chatlm.trainer", "--help", path=tmp_path)

    assert (library.returncode, library.stderr, library.stdout) == (0, "", "")
    assert (trainer.returncode, trainer.stderr) == (0, "")


@pytest.mark.parametrize("module", ["chatlm", "chatlm.trainer"])
def test_a_folder_of_profiles_in_the_current_one_hides_nothing(module: str, tmp_path: Path) -> None:
    """`chatlm autotune` writes it, and an editable install finds our package after it."""
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "tuned.toml").touch()

    done = subprocess.run(
        [sys.executable, "-c", EDITABLE.format(root=str(ROOT), module=module)],
        cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    assert "--help" in done.stdout


@pytest.mark.parametrize(
    ("shadow", "told"),
    [
        ("import types; sys.modules['cli'] = types.ModuleType('cli')", "a module without a file"),
        ("sys.path.insert(0, {folder!r} + '/t.zip')", "t.zip/cli.py is found"),
        ("sys.meta_path = sys.meta_path[:2]; sys.path[:] = [{folder!r}]; chatlm.ROOT = {folder!r}", "nothing is found"),
    ],
    ids=["stand-in", "zip", "missing"],
)  # fmt: skip
def test_a_part_without_a_file_of_its_own_is_named(shadow: str, told: str, tmp_path: Path) -> None:
    """No traceback of ours for what a debugger, an archive or half an uninstall leaves."""
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("cli.py", "print('foreign code ran')\n")
    code = f"import sys, chatlm\n{shadow.format(folder=str(tmp_path))}\nchatlm.require_parts('cli')"

    done = run("-c", code)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("chatlm: the module cli is not chatlm's: ")
    assert told in done.stderr
