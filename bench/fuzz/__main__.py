"""Damaged profiles, data files, run folders and token stores: read, or refused with a ChatlmError?

    python -m bench.fuzz --result bench/results/fuzz-cpu.json
    python -m bench.fuzz --only profiles --case 1234

A case follows from its kind, the seed and its number, so the second command repeats one.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.commands import write_result
from bench.fuzz.batches import PATIENCE, Failure, Report, run_kind
from bench.fuzz.child import KINDS

COUNTS = {"profiles": 10_000, "data": 5_000, "folders": 5_000, "stores": 2_000}
SHOWN = 3
"""Cases of one cause that are shown."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    reports = []
    for kind in options.only:
        cases = [options.case] if options.case is not None else range(getattr(options, kind))
        if cases:
            reports.append(run_kind(kind, options.seed, cases, patience=options.patience))
            print(line(reports[-1]), flush=True)
    failures = [failure for report in reports for failure in report.failures]
    print_failures(failures, whole=options.case is not None)
    if options.result is not None:
        kinds = {report.kind: report.as_json() for report in reports}
        write_result(options.result, {"seed": options.seed, "kinds": kinds})
    return 1 if failures else 0


def parsed(arguments: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(
        prog="python -m bench.fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )  # fmt: skip
    for kind, count in COUNTS.items():
        parser.add_argument(f"--{kind}", type=int, default=count, metavar="N", help="cases")
    known = ", ".join(KINDS)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[*KINDS], help=known)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="this one alone, with its tracebacks")
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds of a case")
    parser.add_argument("--result", type=Path)
    options = parser.parse_args(arguments)
    if options.case is None and not set(options.only) <= set(KINDS):
        parser.error(f"--only takes {known}")
    if options.case is not None and len(options.only) > 1:
        parser.error("--case needs --only with one kind")
    return options


def line(report: Report) -> str:
    """The report in one line."""
    rate = report.cases / max(report.seconds, 1e-9)
    answers = ", ".join(f"{answer} {count:,}" for answer, count in report.answers.items())
    failed = len({failure.case for failure in report.failures})
    return (
        f"{report.kind:<9} {report.cases:>6,} cases in {report.seconds:6.1f} s ({rate:,.0f}/s): "
        f"{answers}; {failed:,} failed"
    )


def print_failures(failures: Sequence[Failure], *, whole: bool) -> None:
    """Each cause with some of its cases, the most frequent first."""
    causes: dict[tuple[str, str], list[Failure]] = defaultdict(list)
    for failure in failures:
        causes[failure.kind, failure.fault.cause].append(failure)
    for (kind, cause), found in sorted(causes.items(), key=lambda item: -len(item[1])):
        print(f"\n{len(found):,} x {kind}: {cause}")
        for failure in found[:SHOWN]:
            says = failure.fault.says if whole else " ".join(failure.fault.says.split())[:120]
            print(f"    {says}\n    {failure.command}")
            if whole:
                print(failure.fault.detail)


if __name__ == "__main__":
    raise SystemExit(main())
