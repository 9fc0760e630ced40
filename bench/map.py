"""Draws the map of CONTRIBUTING.md from the code: `python -m bench.map` writes it there.

A room is a folder. Its process follows from the imports: what the command reaches runs in the supervisor,
what `autotune.tuning.probe_worker`, `trainer.workload` and `python -m trainer` reach runs in workers.
"""

import argparse
import ast
import functools
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- map: python -m bench.map -->\n", "<!-- end of map -->"
PACKAGES = ("autotune", "profiles", "trainer", "dashboard", "chatlm")
SUPERVISOR = ("cli", "chatlm.__main__")
WORKER = ("autotune.tuning.probe_worker", "trainer.workload", "trainer.__main__")
WIDTH = 108


@functools.cache
def modules() -> dict[str, Path]:
    """Every module by its dotted name, `__init__` included."""
    files = [
        ROOT / "cli.py",
        *(f for name in PACKAGES for f in sorted((ROOT / name).rglob("*.py"))),
    ]
    return {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in files}


def imports(file: Path, known: Iterable[str]) -> set[str]:
    """The modules of ours that a file imports anywhere in it, also for types and inside functions."""
    names = set(known)
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (parts & names) or {node.module}
    return {own for name in found for own in (name, f"{name}.__init__") if own in names}


@functools.cache
def graph() -> dict[str, set[str]]:
    """For each module, the modules of ours that it imports."""
    known = modules()
    return {name: imports(file, known) - {name} for name, file in known.items()}


def reached(starts: Iterable[str], edges: dict[str, set[str]]) -> set[str]:
    """Everything that these modules import, directly or not, and themselves."""
    found: set[str] = set()
    waiting = [name for name in starts if name in edges]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += edges[name]
    return found


def room(module: str) -> str:
    """The folder of a module; `cli.py` is a room of its own."""
    return module.rpartition(".")[0].replace(".", "/") or f"{module}.py"


def draw() -> str:
    """The map: a block for each room, lowest first."""
    known, edges = modules(), graph()
    supervisor, worker = reached(SUPERVISOR, edges), reached(WORKER, edges)
    rooms: dict[str, list[str]] = {}
    for name in known:
        rooms.setdefault(room(name), []).append(name)
    blocks = []
    for folder in sorted(rooms, key=lambda r: depth(r, rooms, edges)):
        names = rooms[folder]
        places = [
            process
            for process, there in (("supervisor", supervisor), ("worker", worker))
            if any(name in there and not name.endswith("__init__") for name in names)
        ]
        below = sorted({room(other) for name in names for other in edges[name]} - {folder})
        shown = [name.rpartition(".")[2] for name in names if not name.endswith("__init__")]
        lines = [
            f"{folder:<24} runs in: {' and '.join(places) or 'the caller’s own process'}",
            *_wrapped("for", _purpose(folder)),
            *_wrapped("imports", ", ".join(below) or "nothing of ours"),
            *_wrapped("modules", " ".join(shown)),
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def depth(folder: str, rooms: dict[str, list[str]], edges: dict[str, set[str]]) -> tuple[int, str]:
    """How many rooms lie below it, so that what is imported comes first."""
    below = reached(rooms[folder], edges)
    return len({room(name) for name in below}), folder


def _purpose(folder: str) -> str:
    """The first sentence that the room says of itself."""
    path = ROOT / folder
    file = path / "__init__.py" if path.is_dir() else path
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    first = " ".join(text.split("\n\n")[0].split()).removeprefix("chatlm: ")
    return first[:1].upper() + first[1:]


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"    {label:<8} ", subsequent_indent=" " * 13)


def replaced(page: str) -> str:
    """The page with the map of today between its two marks."""
    return re.sub(
        f"{re.escape(BEGIN)}.*{re.escape(END)}",
        lambda _: f"{BEGIN}```text\n{draw()}```\n{END}",
        page,
        flags=re.DOTALL,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print", action="store_true", help="print it instead")
    if parser.parse_args().print:
        print(draw())
    else:
        PAGE.write_text(replaced(PAGE.read_text()))


if __name__ == "__main__":
    main()
