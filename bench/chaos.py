"""Runs that are disturbed in every way that we know: what was lost, and was a promise broken?

    python -m bench.chaos --seconds 600 --result bench/results/chaos-cpu.json

Each case is a small real run of the command, two at a time: signals, kills, full and vanishing disks, links,
damaged files, two of everything. After each one the same command, undisturbed, must end as the run that
nothing disturbed. Cases whose time has run out are named as not tried. A broken promise makes the exit status 1.
`--docs` writes the table of the committed result into docs/reliability.md.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import (
    chaos_case,
    chaos_damage,
    chaos_disks,
    chaos_kills,
    chaos_links,
    chaos_signals,
    chaos_tuning,
    chaos_two,
)
from bench.chaos_case import Case, Row
from bench.chaos_judge import content, touched
from bench.chaos_place import EVERY, Ground, Place
from bench.commands import write_result

CASES: tuple[Case, ...] = (
    *chaos_kills.CASES,
    *chaos_damage.CASES,
    *chaos_signals.CASES,
    *chaos_tuning.CASES,
    *chaos_disks.CASES,
    *chaos_two.CASES,
    *chaos_links.CASES,
)
"""The most valuable first, and the longest: two end together."""
LANES = 2
"""Cases at a time."""
NOMINAL = 10.0
"""Seconds of the undisturbed run on an idle machine: a slower one gets to fewer cases."""
PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
RESULT = Path(__file__).parent / "results" / "chaos-cpu.json"
BEGIN, END = "<!-- chaos: python -m bench.chaos --docs -->\n", "<!-- end of chaos -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--only", default="", help="names of cases, with commas between")
    parser.add_argument("--result", type=Path, help="a JSON file; the table is written beside it")
    parser.add_argument("--docs", action="store_true", help="write the table into the docs")
    options = parser.parse_args()
    if options.docs:
        PAGE.write_text(with_table(PAGE.read_text(), read(RESULT)))
        return
    only = set(filter(None, options.only.split(",")))
    if unknown := only - {case.name for case in CASES}:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(names())}")
    began = time.monotonic()
    chosen = [case for case in CASES if not only or case.name in only]
    rows = tried(chosen, seconds=options.seconds)
    document = as_document(rows, time.monotonic() - began)
    print(f"\n{table(document)}\n\n{words(document)}")
    if options.result is not None:
        write_result(options.result, document)
        options.result.with_suffix(".md").write_text(f"{table(document)}\n")
    sys.exit(any(row.broken for row in rows))


def names() -> list[str]:
    return list(dict.fromkeys(case.name for case in CASES))


def tried(cases: Sequence[Case], *, seconds: float) -> list[Row]:
    """The rows of all cases, in their order; those for which no time is left are not tried."""
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        ground = Ground(Path(name))
        slowness = max(1.0, ground.make() / NOMINAL)
        inputs = {part: content(Path(name) / part) for part in ("model", "whole")}
        with ThreadPoolExecutor(LANES) as lanes:
            found = list(lanes.map(lambda case: one(case, ground, deadline, slowness), cases))
        faults = [
            fault
            for part, before in inputs.items()
            for fault in touched(before, content(Path(name) / part), part)
        ]
    rows = [row for rows in found for row in rows]
    ended = Row(
        case="all", done="the model and the undisturbed run, before and after", phase="all of it",
        lost="nothing", broken=tuple(faults),
    )  # fmt: skip
    return [*rows, ended]


def one(case: Case, ground: Ground, deadline: float, slowness: float) -> Sequence[Row]:
    """The rows of one case; its folder is removed, so that the disk does not fill."""
    if time.monotonic() + case.seconds * slowness > deadline:
        return [chaos_case.row(case, strike, skipped="no time was left") for strike in case.strikes]
    place = Place(ground, tokens=case.tokens)
    try:
        rows = case.run(case, place)
    except Exception as error:  # noqa: BLE001  one case that fails must not end the others
        why = f"the bench failed: {type(error).__name__}: {error}"
        traceback.print_exception(error)
        rows = [chaos_case.row(case, strike, broken=(why,)) for strike in case.strikes]
    for each in rows:
        print(line(each), flush=True)
    shutil.rmtree(place.folder, ignore_errors=True)
    return rows


def line(row: Row) -> str:
    why = "; ".join(row.broken) or row.skipped or row.said
    return f"{row.verdict:<9} {row.done} ({row.phase}): {why}"


def as_document(rows: Iterable[Row], seconds: float) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 1),
        "rows": [{**asdict(row), "verdict": row.verdict} for row in rows],
    }


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def table(document: Mapping[str, Any]) -> str:
    """The rows as a Markdown table; those that differ by their phases alone are one."""
    phases: dict[tuple[str, ...], list[str]] = {}
    for row in document["rows"]:
        said = "; ".join(row["broken"]) or row["skipped"] or row["said"]
        key = (row["done"], row["exit"], row["lost"], row["verdict"], said)
        phases.setdefault(key, []).append(row["phase"])
    head = ("what is done", "phase", "exit", "what is lost", "promises", "what is said")
    cells = [head, ("---",) * len(head)]
    cells += [(done, ", ".join(names), *rest) for (done, *rest), names in phases.items()]
    return "\n".join(f"| {' | '.join(c.replace('|', '/') for c in line)} |" for line in cells)


def words(document: Mapping[str, Any]) -> str:
    """How many promises were held and what was lost at most, in one line."""
    verdicts = [row["verdict"] for row in document["rows"]]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ("held", "broken", "not tried"))
    most = max(row["steps_lost"] for row in document["rows"])
    return (
        f"{len(verdicts)} disturbances in {document['seconds']:.0f} s: {counts}; {most} steps lost at "
        f"most, by runs that save every {EVERY}"
    )


def with_table(page: str, document: Mapping[str, Any]) -> str:
    """The page with the table of that result between its marks."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{words(document)}.\n\n{table(document)}\n{END}{after}"


if __name__ == "__main__":
    main()
