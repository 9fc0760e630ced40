"""Imports point one way, and nothing that answers at once loads torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ["autotune", "profiles", "trainer", "dashboard", "cli"]
"""Lowest first: a module may import its own layer and those before it."""
FILES = [ROOT / "cli.py", *(file for layer in LAYERS for file in (ROOT / layer).rglob("*.py"))]


def imported(file: Path) -> set[str]:
    """The top names that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_import_climbs(file: Path) -> None:
    """cli → dashboard → trainer → profiles → autotune."""
    layer = file.relative_to(ROOT).parts[0].removesuffix(".py")

    above = set(LAYERS[LAYERS.index(layer) + 1 :])

    assert not imported(file) & above


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["autotune", "--help"],
        ["train", "--help"],
        ["profiles", "list"],
        ["profiles", "show", "fast"],
        ["monitor", "--once"],
        ["monitor", "--once", "--json"],
    ],
    ids=" ".join,
)
def test_a_command_that_answers_at_once_loads_no_torch(arguments: list[str]) -> None:
    """Seconds of imports belong to the workers."""
    script = (
        "import sys, cli\n"
        f"sys.argv = ['chatlm', *{arguments!r}]\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_whole_supervisor_loads_no_torch() -> None:
    """Everything that `autotune` and `train` run outside the workers."""
    modules = "autotune.tuning.loop, autotune.tuning.prober, trainer.supervisor.training, trainer.supervisor.tuning, dashboard.live"
    script = f"import sys, {modules}\nassert 'torch' not in sys.modules\n"

    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60)

    assert done.returncode == 0
