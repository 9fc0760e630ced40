"""Does host memory grow with the data? Two million rows, tokenised and trained on, in each format.

    python -m bench.rows_2m --result bench/results/rows-2m-cpu.json

The formats are Parquet, CSV, and JSON lines in gzip; `--format` takes one of them. The rows are the bundled ones, each with a number of its own, the longest first. `chatlm train` runs
three times with the same flags and one loader process: on the first 1,000 rows (the reference), on
all of them, which tokenises first, and on all of them again. What each process holds in anonymous
memory (RssAnon, every 20 ms) beyond the same one of the reference is held against the promise; pages
of mapped files are the kernel's to take back, and do not count.
"""

import argparse
import csv
import gzip
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from bench.commands import CHATLM, write_result
from trainer.reading.readers import bundled, read_rows

PROMISE = 60 * 10**6
"""Bytes."""
REFERENCE_ROWS = 1000
GROUP = 20_000
"""Rows of a row group."""
FORMATS = ("parquet", "csv", "jsonl.gz")
SCHEMA = pa.schema([("prompt", pa.string()), ("response", pa.string())])
PERIOD = 0.02
TICKS = os.sysconf("SC_CLK_TCK")
PROFILE = """\
schema = 1
[batch]
micro_batch_size = 4
gradient_accumulation_steps = 4
effective_batch_size = 16
[run]
max_source_length = 128
max_target_length = 128
loader_workers = 1
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--format", choices=FORMATS, action="append")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--keep", type=Path, help="a folder for the rows and tokens, not removed")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="rows-2m-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        found = {
            each: measured(folder / each, each, options.rows, options.steps)
            for each in options.format or FORMATS
        }
    finally:
        if options.keep is None:
            shutil.rmtree(folder)
    write_result(options.result, {"formats": found})


def measured(folder: Path, form: str, rows: int, steps: int) -> dict[str, Any]:
    """The figures of one format."""
    folder.mkdir(exist_ok=True)
    few, many = folder / f"few.{form}", folder / f"many.{form}"
    write_rows(few, REFERENCE_ROWS)
    write_rows(many, rows)
    (folder / "profile.toml").write_text(PROFILE)
    runs = {
        name: train(folder, data, steps)
        for name, data in (("reference", few), ("tokenising", many), ("again", many))
    }
    store = max((folder / "cache").glob("[!.]*"), key=lambda store: store_stats(store)["rows"])
    found = store_stats(store)
    return {
        "rows": rows,
        "steps": steps,
        "file_bytes": many.stat().st_size,
        "store_bytes": sum(file.stat().st_size for file in store.iterdir()),
        "tokens": found["tokens"],
        "tokenise_seconds": found["seconds"],
        "tokenise_rows_per_second": found["rows"] / found["seconds"],
        "tokenise_cores": runs["tokenising"].cores,
        "load_average": os.getloadavg()[1],
        **summary({name: run.peaks for name, run in runs.items()}),
    }


def summary(peaks: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """What each process of each run peaked at, beyond the reference's, against the promise."""
    beyond = {
        run: {role: peak - peaks["reference"][role] for role, peak in roles.items()}
        for run, roles in peaks.items()
        if run != "reference"
    }
    most = max(value for roles in beyond.values() for value in roles.values())
    return {
        "peak_anonymous_bytes": {run: dict(roles) for run, roles in peaks.items()},
        "beyond_reference_bytes": beyond,
        "promise_bytes": PROMISE,
        "most_beyond_reference_bytes": most,
        "holds": most <= PROMISE,
    }


def write_rows(path: Path, count: int) -> None:
    """That many different rows; a longer file begins as a shorter one does. The name says the format."""
    if path.suffix == ".parquet":
        with pq.ParquetWriter(path, SCHEMA) as writer:
            for group in groups(count):
                writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, SCHEMA.names)
            table.writeheader()
            for group in groups(count):
                table.writerows(group)
    else:
        with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
            for group in groups(count):
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in group)


def groups(count: int) -> Iterator[list[dict[str, str]]]:
    """The rows, a row group at a time, the longest first."""
    rows = sorted(read_rows(bundled("train")), key=lambda row: -len(row.prompt + row.response))
    for first in range(0, count, GROUP):
        numbers = range(first, min(first + GROUP, count))
        yield [
            {
                "prompt": f"{n:07} {rows[n % len(rows)].prompt}",
                "response": rows[n % len(rows)].response,
            }
            for n in numbers
        ]


@dataclass(slots=True)
class Watched:
    """What the processes of one command held."""

    peaks: dict[str, int] = field(default_factory=dict)
    """Anonymous bytes, by role."""
    tokenising: list[tuple[float, float]] = field(default_factory=list)
    """(clock, processor seconds of the worker) while rows become tokens."""

    @property
    def cores(self) -> float | None:
        if len(self.tokenising) < 2:
            return None
        (began, before), (ended, after) = self.tokenising[0], self.tokenising[-1]
        return (after - before) / (ended - began)


def train(folder: Path, data: Path, steps: int) -> Watched:
    """`chatlm train` on that file, watched from outside; raises when it fails."""
    command = [
        *CHATLM, "train", "--device", "cpu", "--plain", "--fresh", "--profile", "profile.toml",
        "--data", str(data.absolute()), "--max-steps", str(steps), "--output-dir", "run",
    ]  # fmt: skip
    print(f"\n$ chatlm {' '.join(command[len(CHATLM) :])}", flush=True)
    root = str(Path(__file__).parent.parent)
    environment = {
        **os.environ, "CHATLM_CACHE": str(folder.absolute() / "cache"), "PYTHONPATH": root,
    }  # fmt: skip
    watched = Watched()
    with subprocess.Popen(command, cwd=folder, env=environment) as process:
        while process.poll() is None:
            look(process.pid, folder / "cache", watched)
            time.sleep(PERIOD)
    if process.returncode:
        raise RuntimeError(f"chatlm train: exit code {process.returncode}")
    return watched


def look(pid: int, cache: Path, watched: Watched) -> None:
    """Notes what each process of the command holds now."""
    for role, process in roles(
        pid, [child.pid for child in psutil.Process(pid).children(recursive=True)]
    ):
        try:
            held = anonymous(process)
            seconds = processor_seconds(process)
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
        watched.peaks[role] = max(held, watched.peaks.get(role, 0))
        if role == "worker" and next(cache.glob(".partial-*"), None):
            watched.tokenising.append((time.monotonic(), seconds))


def roles(supervisor: int, others: Sequence[int]) -> Iterator[tuple[str, int]]:
    """What each process is, by its command line."""
    yield "supervisor", supervisor
    for pid in others:
        try:
            words = Path("/proc", str(pid), "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"trainer" in words:
            yield "worker", pid
        elif any(b"spawn_main" in word for word in words):
            yield "loader", pid


def anonymous(pid: int) -> int:
    """Bytes of a process that no file backs; 0 of one that is ending."""
    for line in Path("/proc", str(pid), "status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def processor_seconds(pid: int) -> float:
    """User and system time of all its threads."""
    fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def store_stats(store: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((store / "stats.json").read_text())
    return found


if __name__ == "__main__":
    main()
