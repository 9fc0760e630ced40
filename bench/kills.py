"""A run that is killed with SIGKILL again and again, and resumed each time on other processes and cuts.

    python -m bench.kills --kills 50 --result bench/results/kills-cpu.json

Does it end with the weights and metrics of the run that nothing disturbed? Dropout 0, fp32. A kill hits
a worker, or sometimes the supervisor; it falls while the processes start, between two steps, while a
checkpoint is written, while it evaluates, or after a random delay. When it falls is drawn by what the
run says and leaves on the disk. After each one, every `checkpoint-*` that is there must be whole.

`bench.chaos` disturbs runs in all other ways.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.commands import write_result
from bench.processes import descendants, wait_for_the_end
from bench.small import save_small
from bench.small_run import (
    EFFECTIVE,
    TOLERANCE,
    Start,
    difference,
    look_at,
    train_words,
    write_profile,
    write_rows,
)

MOMENTS = ("start", "build", "steps", "saving", "evaluating", "delay")
CUTS = ((1, 4), (2, 3), (1, 7), (3, 2), (1, 5), (2, 8), (1, 1))
"""(processes, micro-batch) of one part after the other; a start costs the more the more processes it has."""
EVERY = 3


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
    write_profile(folder)
    write_rows(folder / "rows.jsonl", 12 * EFFECTIVE)  # an epoch, and so an evaluation, is 12 steps
    save_small("t5", folder / "model")
    whole = Part(folder, steps, "whole", CUTS[0])
    whole.wait()
    done: list[Kill] = []
    parts = 0
    while len(done) < kills:
        part = Part(folder, steps, "killed", CUTS[parts % len(CUTS)])
        parts += 1
        kill = strike(part, MOMENTS[len(done) % len(MOMENTS)], draw)
        if kill is None:
            raise SystemExit(f"the run was over after {len(done)} kills: give it more steps")
        done.append(kill)
        print(f"kill {len(done)} of {kills}: {kill}", flush=True)
    last = Part(folder, steps, "killed", CUTS[parts % len(CUTS)])
    last.wait()
    return {
        "steps": steps,
        "effective_batch": EFFECTIVE,
        "checkpoint_every": EVERY,
        "tolerance": TOLERANCE,
        "summary": compare(whole.output, last.output, done),
        "kills": [asdict(kill) for kill in done],
    }


class Part(Start):
    """One start of the run."""

    def __init__(self, folder: Path, steps: int, name: str, cut: tuple[int, int]) -> None:
        self.processes, self.micro_batch = cut
        output, rows = folder / name, str(folder / "rows.jsonl")
        super().__init__(
            [
                *train_words(folder, output, steps=steps, cut=cut), "--eval-data", rows,
                "--checkpoint-every", str(EVERY), "--generate-rows", "8",
            ],
            folder=folder, output=output, words=folder / f"{name}.txt",
            environment={"CHATLM_CACHE": str(folder / "cache")},
        )  # fmt: skip

    def wait(self) -> None:
        """Returns when it is done; ends the bench when it failed."""
        if self.process.wait() != 0:
            raise SystemExit(f"the run failed: {self.said()[-2000:]}")

    def evaluations(self) -> int:
        return self.said().count("evaluating")


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
        part.until(lambda: "\nstep " in part.said(), pause=0.05)
        first, more = part.steps(), draw.randint(1, 2 * EVERY)
        if moment == "steps":
            part.until(lambda: part.steps() >= first + more)
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
        raise SystemExit(f"the run failed: {part.said()[-2000:]}")
    half, below = part.is_saving(), descendants(part.process.pid)
    victim = draw.choice([*workers, *workers, part.process.pid]) if workers else part.process.pid
    os.kill(victim, signal.SIGKILL)
    part.process.wait()
    wait_for_the_end(below)  # a launcher holds the folder too
    newest, faults = look_at(part.output)
    said = part.steps()
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


def compare(whole: Path, killed: Path, kills: list[Kill]) -> dict[str, Any]:
    """Whether the two runs ended the same, and how far apart they are."""
    apart = difference(whole, killed)
    faults = [fault for kill in kills for fault in kill.faults]
    return {
        "kills": len(kills),
        "largest_weight_difference": apart.weights,
        "largest_relative_loss_difference": apart.loss,
        "largest_relative_gradient_norm_difference": apart.grad_norm,
        "metrics_lines": apart.lines[1],
        "same_steps_samples_tokens_and_rates": apart.same_lines,
        "same_evaluations": apart.same_evaluations,
        "checkpoints_that_did_not_load": faults,
        "most_steps_lost": max(kill.steps_lost for kill in kills),
        "kills_with_a_half_written_checkpoint": sum(kill.had_hidden_checkpoint for kill in kills),
        "kills_of_the_supervisor": sum(kill.victim == "supervisor" for kill in kills),
        "same": not faults and not apart.faults(),
    }


if __name__ == "__main__":
    main()
