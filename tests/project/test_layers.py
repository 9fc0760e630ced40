"""Imports point one way, no room is crowded, and nothing that answers at once loads torch."""

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from bench.map import graph, modules, room
from tests.support.processes import printed_by

ROOT = Path(__file__).parents[2]
ROOMS = (
    "autotune", "autotune/devices", "autotune/workers", "autotune/tuning", "autotune/integrations",
    "profiles",
    "trainer/reading", "trainer/config", "trainer/data", "trainer/artifacts", "trainer/batching", "trainer/pretrained", "trainer/model",
    "trainer/evaluation", "trainer/checkpointing", "trainer/run", "trainer/supervisor", "trainer/launch",
    "trainer",
    "dashboard", "cli.py", "chatlm",
)  # fmt: skip
"""Lowest first: a module may import from its own room and from those before it."""
ELSEWHERE = {
    # users import the tuner and the version from the top; what they use lies above
    "autotune.api": "autotune/integrations",
    "autotune.__init__": "autotune/integrations",
    "chatlm.__init__": "chatlm",
    # every room of the trainer uses these
    "trainer.events": "trainer/config",
    "trainer.__init__": "trainer/config",
}
"""Modules that may import as much as a module of that room, and may be imported by all."""
MOST_MODULES = 15
MOST_LINES = 30
"""Of a command's function in cli.py, its signature and decorators included."""


@pytest.mark.parametrize("module", sorted(modules()))
def test_no_import_climbs(module: str) -> None:
    """Also inside functions and for types alone."""
    own = ROOMS.index(ELSEWHERE.get(module, room(module)))

    above = {
        other for other in graph()[module] - ELSEWHERE.keys() if ROOMS.index(room(other)) > own
    }

    assert above == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    """A circle is one module in several files."""
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as circle:
        pytest.fail(" -> ".join(circle.args[1]))


def test_no_room_has_more_modules_than_a_reader_can_hold() -> None:
    """`__init__` aside."""
    crowded = Counter(room(name) for name in modules() if not name.endswith("__init__"))

    assert {name: n for name, n in crowded.items() if n > MOST_MODULES} == {}


def test_a_command_parses_and_prints_and_does_little_else() -> None:
    """What it does lies in `trainer` and `autotune`, where other callers find it too."""
    lines = {
        node.name: (node.end_lineno or 0) - node.lineno + 1 + len(node.decorator_list)
        for node in ast.parse((ROOT / "cli.py").read_text()).body
        if isinstance(node, ast.FunctionDef)
    }

    assert {"autotune", "train", "monitor"} <= lines.keys()
    assert {name: n for name, n in lines.items() if n > MOST_LINES} == {}


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

    assert printed_by(script)


def test_the_whole_supervisor_loads_no_torch() -> None:
    """Everything that `autotune` and `train` run outside the workers."""
    modules = "autotune.tuning.loop, autotune.tuning.prober, trainer.supervisor.training, trainer.supervisor.tuning, dashboard.live"

    assert printed_by(f"import sys, {modules}\nprint('torch' in sys.modules)") == "False\n"
