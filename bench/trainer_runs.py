"""One run of a trainer in a fresh process: ours in three ways to cut, or a peer.

What is the same for all stands in `Task`: weights, rows, effective batch, optimizer, threads and the
allocator's settings. Each run ends as `Ran`: its steps, in the keys of `metrics.jsonl`.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from autotune.devices.host import HostMeter
from autotune.devices.processes import proportional
from autotune.devices.selection import open_devices
from autotune.workers.launch import worker_environment
from bench.commands import CHATLM

ROOT = Path(__file__).parent.parent
WARM = 2
"""Steps that are not timed: the first ones find caches cold and memory not yet there."""
SMOOTH = 5
"""Steps over which a loss is taken as one."""
EVERY = 1.0
"""Seconds between two looks at the host memory of a run; each costs milliseconds a process."""
WAYS = {"plain": (), "exact": (), "grouped": ("--length-grouping",)}
"""Our three ways to cut, and the flags that ask for them; `plain` is `bench.plain`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What all trainers share."""

    model: str
    """A folder: the same first weights for all."""
    is_causal: bool
    data: str
    tokens: str
    """The same rows as token ids, for the peers: a folder that `datasets` wrote."""
    folder: str
    """Where runs leave their files."""
    profile: str
    micro_batch: int
    effective: int
    steps: int
    learning_rate: float
    device: str = "cpu"
    precision: str = "fp32"
    loaders: int = 0
    seed: int = 0

    @property
    def accumulation(self) -> int:
        return -(-self.effective // self.micro_batch)

    @property
    def warmup_steps(self) -> int:
        """Steps until our learning rate is at its peak: a twentieth, but ten of a short run."""
        return max(1, round(0.05 * self.steps), min(10, self.steps // 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What became of one run; `seconds` of its whole process, imports included."""

    steps: tuple[Mapping[str, Any], ...]
    host_bytes: int
    """The most that all its processes held at once, pages that they share counted once."""
    card_bytes: int
    """The most that was used of a card beyond what was before, as the driver counts; 0 on a CPU."""
    seconds: float
    error: str | None = None


def run_ours(task: Task, way: str) -> Ran:
    """`chatlm train` with the profile, or the same trainer with the cut of `bench.plain`."""
    with tempfile.TemporaryDirectory(dir=task.folder) as folder:
        words = [
            "--profile", task.profile, "--model", task.model, "--data", task.data,
            "--max-steps", str(task.steps), "--learning-rate", str(task.learning_rate),
            "--precision", task.precision, "--seed", str(task.seed), "--device", task.device,
            "--checkpoint-every", str(task.steps), "--output-dir", folder, "--fresh",
            *WAYS[way],
        ]  # fmt: skip
        if way == "plain":
            command = [sys.executable, "-P", "-m", "bench.plain", *words]
        else:
            command = [*CHATLM, "train", "--num-processes", "1", "--json", *words]
        return watched(command, task, Path(folder) / "metrics.jsonl")


def run_peer(task: Task, kind: str) -> Ran:
    """Another trainer, by its name in `bench.trainer_peer`."""
    with tempfile.TemporaryDirectory(dir=task.folder) as folder:
        out = Path(folder) / "steps.jsonl"
        words = [kind, "--task", json.dumps(asdict(task)), "--out", str(out)]
        return watched([sys.executable, "-P", "-m", "bench.trainer_peer", *words], task, out)


def environment(task: Task) -> dict[str, str]:
    """As our workers have it, for every trainer; the token store is kept apart from the user's."""
    own = {
        "PYTHONPATH": str(ROOT),
        "CHATLM_CACHE": str(Path(task.folder) / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    return {**worker_environment(task.device, 1), **own}


def watched(command: Sequence[str], task: Task, steps: Path) -> Ran:
    """Runs the command to its end and reads the steps that it wrote."""
    print(f"\n$ python {' '.join(command[1:])}"[:120], flush=True)
    started, host, card = time.monotonic(), 0, 0
    with tempfile.TemporaryFile("w+") as said, _card(task.device) as used:
        before = used()
        process = subprocess.Popen(
            command, cwd=task.folder, env=environment(task), stdout=said, stderr=said, text=True
        )
        while process.poll() is None:
            parent = psutil.Process(process.pid)
            family = (parent, *parent.children(recursive=True))
            host = max(host, sum(proportional(member.pid) for member in family))
            card = max(card, used() - before)
            with suppress(subprocess.TimeoutExpired):
                process.wait(EVERY)
        said.seek(0)
        words = said.read().strip().splitlines() or ["no word"]
    lines = steps.read_text().splitlines() if steps.exists() else []
    failed = process.returncode != 0 or not lines
    return Ran(
        steps=tuple(json.loads(line) for line in lines),
        host_bytes=host,
        card_bytes=card,
        seconds=time.monotonic() - started,
        error=f"exit code {process.returncode}: {words[-1][:300]}" if failed else None,
    )


@contextmanager
def _card(device: str) -> Iterator[Callable[[], int]]:
    """Asks the driver for the bytes that are used of the first card."""
    if device == "cpu":
        yield lambda: 0
        return
    with open_devices("cuda", num_processes=1, vram_limit=None, host=HostMeter()) as devices:
        yield lambda: devices.group.read_baseline()[0].used


def figures(ran: Ran, target: float | None) -> dict[str, Any]:
    """A run in numbers; `target` is the loss that the time to it is counted for."""
    timed = ran.steps[WARM:] or ran.steps
    tokens = sum(step["tokens"] for step in timed)
    reached = None if target is None else to_loss(ran.steps, target)
    return {
        "error": ran.error,
        "real_tokens_per_second": tokens / sum(step["seconds"] for step in timed),
        "padding_efficiency": tokens
        / sum(step["tokens"] / (1 - step["padding"]) for step in timed),
        "micro_batches": sum(step["micro_batches"] for step in timed) / len(timed),
        "peak_bytes": ran.card_bytes or max(step["device_peak_bytes"] for step in ran.steps),
        "host_bytes": ran.host_bytes,
        "last_loss": last_loss(ran.steps),
        "steps_to_loss": None if reached is None else reached[0],
        "seconds_to_loss": None if reached is None else reached[1],
        "process_seconds": ran.seconds,
    }


def last_loss(steps: Sequence[Mapping[str, Any]]) -> float:
    """That of the last steps, in the mean over their target tokens."""
    return _mean_loss(steps[-SMOOTH:])


def to_loss(steps: Sequence[Mapping[str, Any]], target: float) -> tuple[int, float] | None:
    """Steps and seconds until the loss of the last `SMOOTH` of them is no higher; None if it never is.

    The first `WARM` steps' seconds stand for as much as the median of the others: start-up is told apart.
    """
    for count in range(min(SMOOTH, len(steps)), len(steps) + 1):
        if _mean_loss(steps[max(0, count - SMOOTH) : count]) <= target:
            usual = sorted(step["seconds"] for step in steps)[len(steps) // 2]
            seconds = [min(step["seconds"], usual) for step in steps[:WARM]]
            return count, sum(seconds) + sum(step["seconds"] for step in steps[WARM:count])
    return None


def _mean_loss(steps: Sequence[Mapping[str, Any]]) -> float:
    tokens = sum(step["target_tokens"] for step in steps)
    return float(sum(step["loss"] * step["target_tokens"] for step in steps) / tokens)
