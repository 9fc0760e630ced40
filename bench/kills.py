"""A run that is killed with SIGKILL again and again, and resumed each time on other processes and cuts.

    python -m bench.kills --kills 50 --result bench/results/kills-cpu.json

Does it end with the weights and metrics of the run that nothing disturbed? Dropout 0, fp32. A kill hits
a worker, or sometimes the supervisor; it falls while the processes start, between two steps, while a
checkpoint is written, while it evaluates, or after a random delay. When it falls is drawn by what the
run says and leaves on the disk. After each one, every `checkpoint-*` that is there must be whole.

The model is a small T5 with gated GELU, at a learning rate of 3e-4. With a ReLU
two cuts of one run part without any kill, since a sum in another order may fall on the other side of
the kink: weights 1e-3 apart after 200 steps at 3e-4; with GELU 5e-7 after 150 steps, in which the
loss falls from 8.3 to 2.9 (micro-batch 4 against 1).
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.commands import CHATLM, metrics, write_result
from bench.small import save_small

ROOT = Path(__file__).parent.parent
MOMENTS = ("start", "build", "steps", "saving", "evaluating", "delay")
CUTS = ((1, 4), (2, 3), (3, 2), (1, 7), (2, 8), (3, 5), (2, 1))
"""(processes, micro-batch) of one part after the other."""
EFFECTIVE = 16
EVERY = 3
PATIENCE = 120.0
"""Seconds that what is waited for may take; then the run is killed where it is."""
TOLERANCE = 1e-5
"""Largest absolute difference of a weight, and relative difference of a loss or gradient norm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One SIGKILL and what it left."""

    processes: int
    micro_batch: int
    moment: str
    """What was waited for; `ended` where the run was quicker."""
    victim: str
    had_hidden_checkpoint: bool
    """Whether a checkpoint was half written."""
    evaluating: bool
    steps_said: int
    """Steps that the metrics hold after it."""
    checkpoint: int
    """The last whole checkpoint after it; 0 without one."""
    steps_lost: int
    faults: tuple[str, ...]
    """Checkpoints that are there and not whole."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    steps = max(24, 4 * options.kills)  # of which about 3 a kill survive
    with tempfile.TemporaryDirectory() as name:
        document = disturb(Path(name), options.kills, steps, random.Random(options.seed))
    write_result(options.result, {"seed": options.seed, **document})
    print(json.dumps(document["summary"], indent=1))
    sys.exit(0 if document["summary"]["same"] else 1)


def disturb(folder: Path, kills: int, steps: int, draw: random.Random) -> dict[str, Any]:
    """The undisturbed run, the one that is killed, and how they differ."""
    profile = write_profile(folder)
    rows = write_rows(folder)
    save_small("t5", folder / "model")
    whole = Part(folder, profile, rows, steps, "whole", CUTS[0])
    whole.wait()
    done: list[Kill] = []
    parts = 0
    while len(done) < kills:
        part = Part(folder, profile, rows, steps, "killed", CUTS[parts % len(CUTS)])
        parts += 1
        kill = strike(part, MOMENTS[len(done) % len(MOMENTS)], draw)
        if kill is None:
            raise SystemExit(f"the run was over after {len(done)} kills: give it more steps")
        done.append(kill)
        print(f"kill {len(done)} of {kills}: {kill}", flush=True)
    last = Part(folder, profile, rows, steps, "killed", CUTS[parts % len(CUTS)])
    last.wait()
    return {
        "steps": steps,
        "effective_batch": EFFECTIVE,
        "checkpoint_every": EVERY,
        "tolerance": TOLERANCE,
        "summary": compare(whole.output, last.output, done),
        "kills": [asdict(kill) for kill in done],
    }


class Part:
    """One start of the command, and what it has said and left so far."""

    def __init__(
        self, folder: Path, profile: Path, rows: Path, steps: int, name: str, cut: tuple[int, int]
    ) -> None:
        self.output = folder / name
        self.processes, self.micro_batch = cut
        self.words = folder / f"{name}.txt"
        with self.words.open("w") as words:
            self.process = subprocess.Popen(
                [
                    *CHATLM, "train", "--device", "cpu", "--plain", "--profile", str(profile),
                    "--model", str(folder / "model"), "--learning-rate", "3e-4",
                    "--data", str(rows), "--eval-data", str(rows), "--output-dir",
                    str(self.output), "--max-steps", str(steps), "--dropout", "0", "--precision",
                    "fp32", "--seed", "7", "--checkpoint-every", str(EVERY), "--generate-rows", "8",
                    "--num-processes", str(self.processes), "--micro-batch", str(self.micro_batch),
                ],
                cwd=folder, stdin=subprocess.DEVNULL, stdout=words, stderr=subprocess.STDOUT,
                env={
                    **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                    "CHATLM_CACHE": str(folder / "cache"),
                },
            )  # fmt: skip

    def wait(self) -> None:
        """Returns when it is done; ends the bench when it failed."""
        if self.process.wait() != 0:
            raise SystemExit(f"the run failed: {self.words.read_text()[-2000:]}")

    def until(self, claim: Callable[[], bool], pause: float = 0.002) -> None:
        """Returns once that is so, or the run has ended, or patience."""
        end = time.monotonic() + PATIENCE
        while not claim() and self.process.poll() is None and time.monotonic() < end:
            time.sleep(pause)

    def said(self) -> int:
        """Lines of metrics so far, whole or not."""
        file = self.output / "metrics.jsonl"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def is_saving(self) -> bool:
        return any(self.output.glob(".checkpoint-*"))

    def evaluations(self) -> int:
        return self.words.read_text().count("evaluating")

    def workers(self) -> list[int]:
        """Process ids of the ranks, a launcher between them left out."""
        return [
            pid for pid in descendants(self.process.pid)
            if "trainer" in (words := command(pid)) and "torch.distributed.run" not in words
        ]  # fmt: skip


def strike(part: Part, moment: str, draw: random.Random) -> Kill | None:
    """Waits for the moment, kills, and looks at what is left; None when the run was over before."""
    evaluations = 0
    if moment == "start":
        part.until(lambda: bool(part.workers()))
        time.sleep(draw.uniform(0.0, 3.0))
    elif moment == "build":
        part.until(lambda: bool(part.workers()))
        time.sleep(draw.uniform(3.0, 8.0))
    else:
        part.until(lambda: "\nstep " in part.words.read_text(), pause=0.05)
        first, more = part.said(), draw.randint(1, 2 * EVERY)
        if moment == "steps":
            part.until(lambda: part.said() >= first + more)
        elif moment == "saving":
            time.sleep(draw.uniform(0.0, 0.5))
            part.until(part.is_saving, pause=0.0005)
            time.sleep(draw.uniform(0.0, 0.03))
        elif moment == "evaluating":
            before = part.evaluations()
            part.until(lambda: part.evaluations() > before)
            evaluations = 1
            time.sleep(draw.uniform(0.0, 0.3))
        else:
            time.sleep(draw.uniform(0.0, 1.5))
    workers = part.workers()
    if part.process.poll() is not None:
        if part.process.returncode == 0:
            return None
        raise SystemExit(f"the run failed: {part.words.read_text()[-2000:]}")
    half = part.is_saving()
    victim = draw.choice([*workers, *workers, part.process.pid]) if workers else part.process.pid
    os.kill(victim, signal.SIGKILL)
    part.process.wait()
    wait_for_the_end(workers)
    newest, faults = look_at(part.output)
    said = part.said()
    return Kill(
        processes=part.processes,
        micro_batch=part.micro_batch,
        moment=moment,
        victim="supervisor" if victim == part.process.pid else f"rank {workers.index(victim)}",
        had_hidden_checkpoint=half,
        evaluating=bool(evaluations),
        steps_said=said,
        checkpoint=newest,
        steps_lost=max(0, said - newest),
        faults=tuple(faults),
    )


def look_at(output: Path) -> tuple[int, list[str]]:
    """The step of the newest checkpoint, and the faults of all that are there."""
    from safetensors import safe_open

    from trainer.artifacts.manifest import Damaged
    from trainer.artifacts.run_folder import RunFolder
    from trainer.checkpointing.checkpoint import verify

    faults, newest = [], 0
    for path in RunFolder(output).checkpoints():
        try:
            newest = int(verify(path)["step"])
            for name in ("model", "optimizer"):
                with safe_open(path / f"{name}.safetensors", framework="np") as file:
                    for key in file.keys():  # noqa: SIM118  no mapping: it has no other way
                        file.get_tensor(key)
        except (Damaged, OSError) as fault:
            faults.append(f"{path.name}: {fault}")
    return newest, faults


def compare(whole: Path, killed: Path, kills: list[Kill]) -> dict[str, Any]:
    """Whether the two runs ended the same, and how far apart they are."""
    from safetensors.numpy import load_file

    one, other = (load_file(path / "model.safetensors") for path in (whole, killed))
    weights = max(float(abs(one[name] - other[name]).max()) for name in one)
    records, parts = metrics(whole), metrics(killed)
    exact = ("step", "epoch", "samples", "tokens", "target_tokens", "learning_rate")
    same_lines = len(records) == len(parts) and all(
        a[key] == b[key] for a, b in zip(records, parts, strict=True) for key in exact
    )
    far = {
        key: max(abs(a[key] / b[key] - 1) for a, b in zip(records, parts, strict=False))
        for key in ("loss", "grad_norm")
    }
    evaluations = [
        [json.loads(line)["step"] for line in (p / "evaluations.jsonl").read_text().splitlines()]
        for p in (whole, killed)
    ]
    faults = [fault for kill in kills for fault in kill.faults]
    return {
        "kills": len(kills),
        "largest_weight_difference": weights,
        "largest_relative_loss_difference": far["loss"],
        "largest_relative_gradient_norm_difference": far["grad_norm"],
        "metrics_lines": len(parts),
        "same_steps_samples_tokens_and_rates": same_lines,
        "same_evaluations": evaluations[0] == evaluations[1],
        "checkpoints_that_did_not_load": faults,
        "most_steps_lost": max(kill.steps_lost for kill in kills),
        "kills_with_a_half_written_checkpoint": sum(kill.had_hidden_checkpoint for kill in kills),
        "kills_of_the_supervisor": sum(kill.victim == "supervisor" for kill in kills),
        "same": (
            same_lines
            and not faults
            and evaluations[0] == evaluations[1]
            and max(weights, *far.values()) <= TOLERANCE
        ),
    }


def wait_for_the_end(pids: list[int]) -> None:
    """Returns when they are gone: workers end themselves with their supervisor."""
    end = time.monotonic() + PATIENCE
    while any(command(pid) for pid in pids):
        if time.monotonic() > end:
            raise SystemExit(f"processes {pids} outlived their supervisor")
        time.sleep(0.02)


def descendants(pid: int) -> list[int]:
    import psutil

    return sorted(child.pid for child in psutil.Process(pid).children(recursive=True))


def command(pid: int) -> str:
    """Its command line; empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def write_profile(folder: Path) -> Path:
    path = folder / "kills.toml"
    path.write_text(
        "schema = 1\n[batch]\nmicro_batch_size = 4\ngradient_accumulation_steps = 4\n"
        f"effective_batch_size = {EFFECTIVE}\n"
        "[run]\nmax_source_length = 24\nmax_target_length = 24\n"
    )
    return path


def write_rows(folder: Path) -> Path:
    """The first of the bundled rows: an epoch, and so an evaluation, is 12 steps."""
    from trainer.reading.readers import bundled, read_rows

    rows = []
    for row in read_rows(bundled("train")):
        rows.append({"prompt": row.prompt, "response": row.response})
        if len(rows) == 12 * EFFECTIVE:
            break
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    shutil.rmtree(folder / "cache", ignore_errors=True)
    return path


if __name__ == "__main__":
    main()
