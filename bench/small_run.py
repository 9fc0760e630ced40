"""A small real run for the benchmarks that disturb one: its files, one start of it, and how two runs differ.

The model is a small T5 with gated GELU, at a learning rate of 3e-4. With a ReLU
two cuts of one run part without any kill, since a sum in another order may fall on the other side of
the kink: weights 1e-3 apart after 200 steps at 3e-4; with GELU 5e-7 after 150 steps, in which the
loss falls from 8.3 to 2.9 (micro-batch 4 against 1).
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bench.commands import CHATLM, metrics
from bench.processes import PATIENCE, workers_below

ROOT = Path(__file__).parent.parent
EFFECTIVE = 16
TOLERANCE = 1e-5
"""Largest absolute difference of a weight, and relative difference of a loss or gradient norm."""
EXACT = ("step", "epoch", "samples", "tokens", "target_tokens", "learning_rate")
"""What a line of the metrics says without rounding."""


class Start:
    """One start of the command, and what it has said and left so far."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        folder: Path,
        output: Path,
        words: Path,
        environment: Mapping[str, str],
        in_front: Sequence[str] = (),
        stdin: int = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = None,
        stderr: int = subprocess.STDOUT,
    ) -> None:
        """What it prints goes to the file `words`, if no other streams are given."""
        self.output, self.words = output, words
        with words.open("w") as file:
            self.process = subprocess.Popen(
                [*in_front, *CHATLM, *arguments], cwd=folder, stdin=stdin,
                stdout=file if stdout is None else stdout, stderr=stderr,
                env={
                    **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment
                },
            )  # fmt: skip

    def until(self, claim: Callable[[], bool], pause: float = 0.002) -> None:
        """Returns once that is so, or the run has ended, or patience."""
        end = time.monotonic() + PATIENCE
        while not claim() and self.process.poll() is None and time.monotonic() < end:
            time.sleep(pause)

    def steps(self) -> int:
        """Lines of metrics so far, whole or not."""
        file = self.output / "metrics.jsonl"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def said(self) -> str:
        return self.words.read_text(errors="replace")

    def is_saving(self) -> bool:
        return any(self.output.glob(".checkpoint-*"))

    def workers(self) -> list[int]:
        """Process ids of the ranks."""
        return workers_below(self.process.pid)


def train_words(
    folder: Path,
    output: str | Path,
    *,
    steps: int,
    cut: tuple[int, int],
    rows: Path | None = None,
) -> list[str]:
    """The arguments of a run on the files of `folder`, or on other rows; the cut is (processes, micro-batch)."""
    return [
        "train", "--device", "cpu", "--plain", "--profile", str(folder / "small_run.toml"),
        "--model", str(folder / "model"), "--learning-rate", "3e-4",
        "--data", str(rows or folder / "rows.jsonl"), "--output-dir", str(output),
        "--max-steps", str(steps), "--dropout", "0", "--precision", "fp32", "--seed", "7",
        "--num-processes", str(cut[0]), "--micro-batch", str(cut[1]),
    ]  # fmt: skip


def write_profile(folder: Path) -> Path:
    path = folder / "small_run.toml"
    path.write_text(
        "schema = 1\n[batch]\nmicro_batch_size = 4\ngradient_accumulation_steps = 4\n"
        f"effective_batch_size = {EFFECTIVE}\n"
        "[run]\nmax_source_length = 24\nmax_target_length = 24\n"
    )
    return path


def write_rows(path: Path, count: int) -> Path:
    """That many of the bundled rows, again and again if there are fewer."""
    from trainer.reading.readers import bundled, read_rows

    known = [
        json.dumps({"prompt": row.prompt, "response": row.response}) + "\n"
        for _, row in zip(range(count), read_rows(bundled("train")), strict=False)
    ]
    path.write_text("".join(known[n % len(known)] for n in range(count)))
    return path


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


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far apart two finished runs are."""

    weights: float
    """The largest absolute difference."""
    loss: float
    """The largest relative difference of a step's loss."""
    grad_norm: float
    lines: tuple[int, int]
    """Lines of metrics."""
    same_lines: bool
    """Whether they say the same but for what rounding changes."""
    same_evaluations: bool
    """Whether they are of the same steps, with the same losses."""

    def faults(self) -> list[str]:
        """What is more than rounding; nothing where the runs are the same."""
        far = {"weights": self.weights, "losses": self.loss, "gradient norms": self.grad_norm}
        found = [f"{name} differ by {by:.0e}" for name, by in far.items() if not by <= TOLERANCE]
        if self.lines[0] != self.lines[1]:
            found.append(f"{self.lines[1]} lines of metrics instead of {self.lines[0]}")
        elif not self.same_lines:
            found.append("the metrics' lines differ")
        return found if self.same_evaluations else [*found, "the evaluations differ"]


def difference(one: Path, other: Path) -> Difference:
    """Of two folders of finished runs."""
    from safetensors.numpy import load_file

    weights, others = (load_file(path / "model.safetensors") for path in (one, other))
    records, parts = metrics(one), metrics(other)
    far = {
        key: max(
            (abs(a[key] / b[key] - 1) for a, b in zip(records, parts, strict=False)), default=0
        )
        for key in ("loss", "grad_norm")
    }
    return Difference(
        weights=max(float(abs(weights[name] - others[name]).max()) for name in weights),
        loss=far["loss"],
        grad_norm=far["grad_norm"],
        lines=(len(records), len(parts)),
        same_lines=len(records) == len(parts)
        and all(a[key] == b[key] for a, b in zip(records, parts, strict=True) for key in EXACT),
        same_evaluations=_are_alike(evaluations(one), evaluations(other)),
    )


def evaluations(folder: Path) -> list[tuple[int, float]]:
    """Step and loss of each evaluation; none without the file."""
    file = folder / "evaluations.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(record["step"], record["loss"]) for record in map(json.loads, lines)]


def _are_alike(some: list[tuple[int, float]], others: list[tuple[int, float]]) -> bool:
    return [step for step, _ in some] == [step for step, _ in others] and all(
        abs(loss - other) <= TOLERANCE * abs(loss)
        for (_, loss), (_, other) in zip(some, others, strict=True)
    )
