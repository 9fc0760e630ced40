"""One run, cut in every way: micro-batches, numbers of processes, unequal shares, changes on the way.

Every run sees the same samples in the same order; its losses and gradient norms are held against those
of one process that takes each step whole. float32, dropout 0; gloo processes on the CPU, or cards.
"""

import argparse
import itertools
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.plan import Plan
from bench.commands import CHATLM, metrics, write_result
from bench.small import KINDS, save_small

EFFECTIVE = 24
PROMISE = 1e-5
RATE = 3e-3
"""A pretrained model's is 1e-4: what rounding does to one step, it does to the next 30 times over."""
UNEQUAL = ((5, 2), (3, 1, 2))
"""Micro-batches of the ranks, in proportion to which they share a step's samples."""
EVERY = 3
"""Steps between two checkpoints of a run that is killed."""

Step = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a run was cut, in words, and its steps."""

    processes: str
    micro_batch: str
    steps: list[Step]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--data", help="the bundled rows without it")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--processes", type=int, nargs="+", default=(1, 2, 3, 4))
    parser.add_argument("--micro-batches", type=int, nargs="+", default=(1, 3, 6))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            {"model": kind, **row}
            for kind in KINDS
            for row in matrix(kind, save_small(kind, Path(folder) / kind), options)
        ]
        relu = Runs(Path(folder) / "chatlm-tiny-runs", "chatlm-tiny", options)
        whole, cut = relu.train("whole", [EFFECTIVE]), relu.train("cut", [3])
    document = {
        "effective_batch": EFFECTIVE,
        "steps": options.steps,
        "learning_rate": RATE,
        "promise": PROMISE,
        "rows": Path(options.data).name if options.data else "bundled",
        "runs": rows,
        "with_relu": row_of(Way(processes="1", micro_batch="3", steps=cut), whole),
    }
    write_result(options.result, document)
    worst = max(max(row["loss"], row["grad_norm"]) for row in rows)
    print(
        f"{len(rows)} ways, the farthest {worst:.1e} from the whole step (promised {PROMISE:.0e})"
    )
    if worst > PROMISE:
        raise SystemExit(1)


def matrix(kind: str, model: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every way to cut that model's run."""
    runs = Runs(model.parent / f"{kind}-runs", str(model), options)
    whole = runs.train("whole", [EFFECTIVE])
    rows = [row_of(way, whole) for way in every_way(runs, options)]
    grouped = runs.train("grouped", [EFFECTIVE], "--length-grouping")
    steps = runs.train("regrouped", [3], "--length-grouping")
    way = Way(processes="1", micro_batch="3, grouped by length", steps=steps)
    return [*rows, row_of(way, grouped)]


def every_way(runs: "Runs", options: argparse.Namespace) -> Iterator[Way]:
    """Each way to cut the run that the number of processes allows."""
    most = max(options.processes)
    for world_size, size in itertools.product(options.processes, options.micro_batches):
        steps = runs.train(f"even-{world_size}-{size}", [size] * world_size)
        yield Way(processes=str(world_size), micro_batch=str(size), steps=steps)
    for sizes in UNEQUAL:
        if len(sizes) <= most:
            words = " + ".join(map(str, sizes))
            steps = runs.train(f"uneven-{len(sizes)}", list(sizes))
            yield Way(processes=str(len(sizes)), micro_batch=words, steps=steps)
    runs.train_and_kill("recut", [8])
    steps = runs.train("recut", [3])
    yield Way(processes="1", micro_batch="8, killed, then 3", steps=steps)
    if most > 1:
        runs.train_and_kill("moved", [4])
        steps = runs.train("moved", [2] * most)
        yield Way(processes=f"1, then {most}", micro_batch="4, killed, then 2", steps=steps)
        runs.train_and_kill("gathered", [3] * most)
        steps = runs.train("gathered", [5])
        yield Way(processes=f"{most}, then 1", micro_batch="3, killed, then 5", steps=steps)


class Runs:
    """Trains in a folder of its own, each run by a profile that cuts as asked."""

    def __init__(self, folder: Path, model: str, options: argparse.Namespace) -> None:
        folder.mkdir()
        self._folder = folder
        self._model = model
        self._options = options

    def train(self, name: str, sizes: list[int], *flags: str) -> list[Step]:
        """All steps of the run of that name, which resumes where it was killed."""
        print(f"{name}: micro-batch {' + '.join(map(str, sizes))}", flush=True)
        command = self._command(name, sizes, *flags)
        subprocess.run(command, cwd=self._folder, check=True, stdout=subprocess.DEVNULL)
        return metrics(self._folder / name)

    def train_and_kill(self, name: str, sizes: list[int]) -> None:
        """The run's first half or a little more: its supervisor gets SIGKILL."""
        process = subprocess.Popen(
            self._command(name, sizes), cwd=self._folder, stdout=subprocess.DEVNULL
        )
        lines = self._folder / name / "metrics.jsonl"
        while process.poll() is None:
            if lines.exists() and len(lines.read_bytes().splitlines()) > self._options.steps // 2:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.01)
        process.wait()

    def _command(self, name: str, sizes: list[int], *flags: str) -> list[str]:
        options = self._options
        profile = self._folder / f"{name}.toml"
        profile.write_text(profile_of(sizes))
        if options.data:
            flags = (*flags, "--data", str(Path(options.data).resolve()))
        return [
            *CHATLM, "train", "--model", self._model, "--profile", str(profile), "--num-processes", str(len(sizes)),
            "--max-steps", str(options.steps), "--dropout", "0", "--precision", "fp32",
            "--seed", "7", "--learning-rate", str(RATE), "--generate-rows", "0", "--checkpoint-every", str(EVERY),
            "--device", options.device, "--output-dir", name, "--plain", *flags,
        ]  # fmt: skip


def profile_of(sizes: list[int]) -> str:
    """A profile that cuts every step so."""
    plan = Plan(micro_batch=sizes, effective_batch=EFFECTIVE, world_size=len(sizes))
    unequal = "" if plan.is_even else f"micro_batch_sizes = {sizes}\n"
    return (
        f"schema = 1\n[batch]\nmicro_batch_size = {plan.micro_batch}\n{unequal}"
        f"gradient_accumulation_steps = {plan.accumulation}\neffective_batch_size = {EFFECTIVE}\n"
        f"[fingerprint]\nworld_size = {len(sizes)}\n"
    )


def row_of(way: Way, reference: list[Step]) -> dict[str, Any]:
    """The largest relative difference of any step's loss and gradient norm."""
    pairs = list(zip(way.steps, reference, strict=True))
    far = {
        key: max(abs(own[key] - other[key]) / abs(other[key]) for own, other in pairs)
        for key in ("loss", "grad_norm")
    }
    most = max(step["micro_batches"] for step in way.steps)
    return {
        "processes": way.processes,
        "micro_batch": way.micro_batch,
        "most_micro_batches": most,
        **far,
    }


def table(document: Mapping[str, Any]) -> str:
    """Markdown for the docs, one row a way to cut."""
    lines = [
        "| model | processes | micro-batch | most micro-batches a step | loss | gradient norm |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {run['model']} | {run['processes']} | {run['micro_batch']} | {run['most_micro_batches']} "
        f"| {run['loss']:.0e} | {run['grad_norm']:.0e} |"
        for run in document["runs"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
