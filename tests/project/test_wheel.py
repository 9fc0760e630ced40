"""The wheel is the whole program: it has all of its files, and trains without the clone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("autotune", "chatlm", "profiles", "trainer", "dashboard", "cli.py", "pyproject.toml", "README.md",
           "LICENSE")  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    clone = folder / "clone"
    clone.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, clone / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(clone)]
    subprocess.run([*pip, *build], check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    shutil.rmtree(clone)
    install = ["install", "--no-deps", "--target", str(folder / "site"), str(wheel)]
    subprocess.run([*pip, *install], check=True, timeout=300)
    return folder / "site"


def files(folder: Path) -> dict[str, bytes]:
    """The program's files below a folder, by path; without profiles that `chatlm autotune` wrote in a clone."""
    packages = (folder / name for name in SOURCES if (ROOT / name).is_dir())
    found = [file for package in packages for file in package.rglob("*") if file.is_file()]
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in (*found, folder / "cli.py")
        if file.suffix != ".pyc" and (file.suffix, file.parent.name) != (".toml", "profiles")
    }


def test_it_has_every_file_of_the_program(site: Path) -> None:
    """Modules, presets, bundled data and tokenizer, as they are in the clone."""
    assert files(site) == files(ROOT)


def test_it_trains_without_the_clone(site: Path, tmp_path: Path) -> None:
    """A child process finds its modules and files too."""
    train = ("train", "--profile", "small", "--max-steps", "1", "--generate-rows", "4")

    done = subprocess.run(
        [sys.executable, "-P", "-m", "cli", *train, "--device", "cpu", "--json"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 1
