"""The wheel is the whole program: it tunes and trains without the clone."""

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
    subprocess.run([*pip, *build], check=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    shutil.rmtree(clone)
    install = ["install", "--no-deps", "--target", str(folder / "site"), str(wheel)]
    subprocess.run([*pip, *install], check=True, timeout=120)
    return folder / "site"


def test_it_tunes_and_trains_without_the_clone(site: Path, tmp_path: Path) -> None:
    """Presets, bundled data and tokenizer are in it, and child processes find them."""
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def chatlm(*arguments: str) -> dict[str, object]:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "cli", *arguments, "--device", "cpu", "--json"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        document: dict[str, object] = json.loads(done.stdout)
        return document

    tuned = chatlm("autotune", "--vram-limit", "2GiB", "--max-batch", "2")
    trained = chatlm("train", "--profile", "tuned", "--max-steps", "1", "--generate-rows", "4")

    assert tuned["micro_batch_size"] == 2
    assert trained["steps"] == 1
