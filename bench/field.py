"""Inputs as people have them, each with what its owner rightly expects of it.

    python -m bench.field CASES --result bench/results/field.json

CASES is a folder of makers (`python MAKER.py OUT`) and of JSON lines, or of what they made. The table says
what was seen; a case that is not as expected makes the exit status 1.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.commands import write_result
from bench.field_cases import CASES, Case, NotMade

SLOWEST = 300
"""Seconds of a maker."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", type=Path)
    parser.add_argument("--result", type=Path, help="a JSON file; the table is written beside it")
    parser.add_argument("--only", default="", help="cases whose names begin with this")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="field-"))
    try:
        make(options.cases.resolve(), folder)
        os.environ["CHATLM_CACHE"] = str(folder / "cache")
        os.chdir(folder)
        rows = [tried(case, folder) for case in CASES if case.name.startswith(options.only)]
    finally:
        shutil.rmtree(folder)
    print(f"\n{table(rows)}")
    if options.result is not None:
        result = Path(__file__).parents[1] / options.result
        write_result(result, {"cases": rows})
        result.with_suffix(".md").write_text(f"{table(rows)}\n", encoding="utf-8")
    sys.exit(any(row["verdict"] == "wrong" for row in rows))


def make(cases: Path, folder: Path) -> None:
    """Runs the makers of that folder, and copies what is made already."""
    for source in sorted(cases.iterdir()):
        if source.is_dir() and source.name != "__pycache__":
            shutil.copytree(source, folder / source.name)
        elif source.suffix == ".jsonl":
            shutil.copy(source, folder)
    for maker in sorted(cases.glob("*.py")):
        command = [sys.executable, str(maker), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SLOWEST)
        if done.returncode:
            print(f"{maker.name} made nothing: {(done.stderr.splitlines() or ['?'])[-1]}")


def tried(case: Case, folder: Path) -> dict[str, Any]:
    began = time.monotonic()
    try:
        seen, verdict = case.run(folder / case.place), "right"
    except NotMade as error:
        seen, verdict = str(error), "not made"
    except AssertionError as error:
        seen, verdict = str(error) or "not as expected", "wrong"
    seen = seen.replace(f"{folder}/", "")
    print(f"{verdict:<8} {case.name}: {seen}", flush=True)
    return {
        "case": case.name, "expected": case.expected, "seen": seen, "verdict": verdict,
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    names = ("case", "expected", "verdict", "seen")
    cells = [names, ["---"] * len(names), *([row[name] for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(c.replace('|', '/') for c in line)} |" for line in cells)


if __name__ == "__main__":
    main()
