"""Cases in child processes, one for each core; a child that dies is a fault of the case that it ran."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.fuzz.case import OURS, ROOT, Fault, Outcome, escaped, remove, summary
from bench.fuzz.child import READY

PATIENCE = 20.0
"""Seconds of a case; most take milliseconds."""
DIED = "died"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # the others reserve memory that they do not use
    "PYTHONPATH": str(ROOT),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that broke a promise."""

    kind: str
    seed: int
    case: int
    fault: Fault

    @property
    def command(self) -> str:
        """What repeats it."""
        return f"python -m bench.fuzz --only {self.kind} --seed {self.seed} --case {self.case}"


@dataclass(frozen=True, slots=True)
class Report:
    """What became of the cases of a kind."""

    kind: str
    cases: int
    seconds: float
    answers: dict[str, int]
    failures: tuple[Failure, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "cases": self.cases,
            "seconds": round(self.seconds, 1),
            "answers": self.answers,
            "failures": [
                {"case": f.case, "cause": f.fault.cause, "says": f.fault.says, "repeat": f.command}
                for f in self.failures
            ],
        }


def run_kind(
    kind: str,
    seed: int,
    cases: Sequence[int],
    *,
    patience: float = PATIENCE,
    processes: int | None = None,
) -> Report:
    """The report of those cases, which are shared by so many processes; None: one for each core."""
    began = time.monotonic()
    count = min(processes or len(os.sched_getaffinity(0)), len(cases))
    parts = [cases[n::count] for n in range(count)]
    with ThreadPoolExecutor(count) as pool:
        found = pool.map(lambda part: list(run_part(kind, seed, part, patience)), parts)
        outcomes = dict(pair for part in found for pair in part)
    failures = (
        Failure(kind, seed, case, fault) for case in cases for fault in outcomes[case].faults
    )
    seconds = time.monotonic() - began
    answers = summary([*outcomes.values()])
    return Report(kind, len(cases), seconds, answers, tuple(failures))


def run_part(
    kind: str, seed: int, cases: Sequence[int], patience: float
) -> Iterator[tuple[int, Outcome]]:
    """Each case and its outcome; another child takes over from one that dies."""
    while cases:
        with tempfile.TemporaryDirectory(prefix="chatlm-fuzz-") as folder:
            outcomes, death = run_child(kind, seed, cases, patience, Path(folder))
            for path in Path(folder).iterdir():
                remove(path)
        if len(outcomes) < len(cases):
            outcomes.append(Outcome(DIED, (death,)))
        yield from zip(cases, outcomes, strict=False)
        cases = cases[len(outcomes) :]


def run_child(
    kind: str, seed: int, cases: Sequence[int], patience: float, folder: Path
) -> tuple[list[Outcome], Fault]:
    """The outcomes up to the child's end, and how it ended."""
    environment = {**os.environ, **ENVIRONMENT, "TMPDIR": str(folder / "case" / "tmp")}
    errors = folder / "errors"
    with errors.open("wb") as stream:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "bench.fuzz.child", kind, str(seed), str(patience), str(folder)],
            input=json.dumps([*cases]).encode(), stdout=subprocess.PIPE, stderr=stream, env=environment, cwd=folder,
        )  # fmt: skip
    said = errors.read_text(errors="replace")
    if done.returncode == -signal.SIGINT:
        raise KeyboardInterrupt
    lines = done.stdout.decode().splitlines()
    if lines[:1] != [READY]:
        raise SystemExit(f"the cases of {kind} could not be prepared:\n{said}")
    return [as_outcome(line) for line in lines[1:]], how_it_ended(done.returncode, said, patience)


def as_outcome(line: str) -> Outcome:
    document = json.loads(line)
    return Outcome(document["answer"], tuple(Fault(**fault) for fault in document["faults"]))


def how_it_ended(code: int, said: str, patience: float) -> Fault:
    """The death of a child, by its exit code and what it wrote."""
    frames = re.findall(r'File "(.*)", line (\d+) in (\w+)', said)
    relative = ((path.removeprefix(f"{ROOT}/"), line, name) for path, line, name in frames)
    ours = next((f for f in relative if f[0].split("/")[0] in OURS), ("a library", "?", "?"))
    place = f"{ours[0]}:{ours[1]} {ours[2]}"
    if "Timeout (" in said:
        return Fault(f"hang at {place}", f"more than {patience:g} s", escaped(said, 6000))
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    last = said.strip().splitlines()[-1:]
    return Fault(f"{how} at {place}", escaped("".join(last)), escaped(said, 6000))
