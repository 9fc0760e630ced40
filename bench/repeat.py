"""The same tuning many times, each in a folder of its own, and a short training with each profile.

    python -m bench.repeat --runs 30 --result bench/results/repeat-cpu.json

Does a tuning repeat itself, and does training stay in the budget that its probe held? In the first
runs' folders it is tuned once more: that one finds a profile of the very same and needs one probe.
What is done is written down after every run, so that a bench that is cut keeps it.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.commands import CHATLM, write_result

ROOT = Path(__file__).parent.parent
PATIENCE = 60.0
"""Seconds that a command gets to end by itself once it was asked to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What one `chatlm autotune` found; `seconds` of the whole command."""

    micro_batch: int
    verdicts: tuple[str, ...]
    """Of each probe, in order."""
    sizes: tuple[int, ...]
    peak_bytes: int
    budget_bytes: int
    seconds: float

    @property
    def probes(self) -> int:
        return len(self.verdicts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A first tuning, the training with its profile, and a second tuning in some."""

    tuning: Tuning
    training_peak_bytes: int
    training_seconds: float
    second: Tuning | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--again", type=int, default=3, help="runs that are tuned a second time")
    parser.add_argument("--model", default="chatlm-tiny")
    parser.add_argument("--data", type=Path, help="the bundled rows without it")
    parser.add_argument("--vram-limit", default="2GiB")
    parser.add_argument("--train-steps", type=int, default=4)
    options = parser.parse_args()
    common = ["--device", "cpu", "--num-processes", "1", "--model", options.model]
    if options.data:
        common += ["--data", str(options.data.resolve())]
    runs: list[Run] = []
    failures: list[str] = []
    for number in range(options.runs):
        again = number < options.again
        try:
            with tempfile.TemporaryDirectory() as folder:
                run = once(Path(folder), common, options.vram_limit, options.train_steps, again)
            runs.append(run)
        except RuntimeError as error:  # a finding as well: it is counted, and the next one runs
            failures.append(str(error))
        document = {
            "model": options.model,
            "rows": options.data.name if options.data else "bundled",
            "vram_limit": options.vram_limit,
            "training_steps": options.train_steps,
            "runs_asked_for": options.runs,
            "summary": summary(runs),
            "failures": failures,
            "runs": [asdict(run) for run in runs],
        }
        write_result(options.result, document)
        print(f"run {number + 1} of {options.runs}: {failures[-1:] or runs[-1]}", flush=True)
    print(json.dumps(summary(runs), indent=1))


def once(folder: Path, common: Sequence[str], limit: str, steps: int, again: bool) -> Run:
    """One run, in a folder without profiles; raises RuntimeError when a command fails."""

    def tuned() -> Tuning:
        return as_tuning(
            *timed(folder, "autotune", "--target-vram", "0.6", "--vram-limit", limit, *common)
        )

    first = tuned()
    training, seconds = timed(
        folder, "train", "--profile", "tuned", "--max-steps", str(steps), *common
    )
    return Run(
        tuning=first,
        training_peak_bytes=training["peak_bytes"],
        training_seconds=seconds,
        second=tuned() if again else None,
    )


def as_tuning(document: dict[str, Any], seconds: float) -> Tuning:
    (device,) = document["devices"]
    return Tuning(
        micro_batch=document["micro_batch_size"],
        verdicts=tuple(trial["verdict"] for trial in document["trials"]),
        sizes=tuple(trial["size"] for trial in document["trials"]),
        peak_bytes=device["peak_bytes"],
        budget_bytes=device["budget_bytes"],
        seconds=seconds,
    )


def timed(
    folder: Path, *arguments: str, timeout: float | None = None
) -> tuple[dict[str, Any], float]:
    """The JSON document of a `chatlm` command run in that folder, and its seconds.

    Raises RuntimeError with its last words when it fails, or did not end in time.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        [*CHATLM, *arguments, "--json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        raise RuntimeError(f"{arguments[0]} did not end within {timeout:.0f} s") from None
    if process.returncode != 0:
        words = err.strip().splitlines() or ["no word"]
        raise RuntimeError(f"{arguments[0]}: exit code {process.returncode}: {words[-1][:500]}")
    document: dict[str, Any] = json.loads(out)
    return document, time.monotonic() - started


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """What the runs say together; empty without any."""
    if not runs:
        return {}
    answers = [run.tuning.micro_batch for run in runs]
    middle = statistics.median_low(answers)
    seconds = [run.tuning.seconds for run in runs]
    second = [run.second for run in runs if run.second is not None]
    return {
        "runs": len(runs),
        "answer": {"min": min(answers), "median": middle, "max": max(answers)},
        "share_within_1_of_the_median": _share(abs(answer - middle) <= 1 for answer in answers),
        "probes": {
            "min": min(run.tuning.probes for run in runs),
            "mean": statistics.fmean(run.tuning.probes for run in runs),
            "max": max(run.tuning.probes for run in runs),
        },
        "runs_with_a_trial_over_budget": sum("over" in run.tuning.verdicts for run in runs),
        "runs_with_a_trial_out_of_memory": sum("oom" in run.tuning.verdicts for run in runs),
        "highest_probe_peak_to_budget": max(
            run.tuning.peak_bytes / run.tuning.budget_bytes for run in runs
        ),
        "highest_training_peak_to_budget": max(
            run.training_peak_bytes / run.tuning.budget_bytes for run in runs
        ),
        "farthest_training_peak_from_probe": max(
            abs(run.training_peak_bytes / run.tuning.peak_bytes - 1) for run in runs
        ),
        "tuning_seconds": {"median": statistics.median(seconds), "max": max(seconds)},
        "second_tuning_probes": [tuning.probes for tuning in second],
        "second_tuning_same_answer": [
            run.second.micro_batch == run.tuning.micro_batch for run in runs if run.second
        ],
    }


def _share(claims: Iterable[bool]) -> float:
    return statistics.fmean(map(float, claims))


if __name__ == "__main__":
    main()
