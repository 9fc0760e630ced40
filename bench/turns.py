"""Our trainer made to cut the same samples in several ways, in turns: `python -m bench.turns` for `python -m trainer`.

Of N turns, step r · N + t cuts the samples that step r would have had in the way of one turn. So all are
timed in one process, each a moment after the others, on the same samples; the first round warms up. Which
turn comes first moves on with each round. Nothing but the cut is another.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from autotune.plan import Plan, cut
from autotune.workers.launch import worker_environment
from bench.commands import ROOT, metrics

if TYPE_CHECKING:
    from trainer.batching.step_loader import RankStep, Steps

ASKED = "CHATLM_TURNS"
"""The environment variable that holds the turns; loader processes read it as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One way to cut."""

    name: str
    """Of the micro-batch."""
    micro_batch: int
    cut: Literal["fixed", "length"]
    """`fixed` are micro-batches of that size in the order of the samples, each padded to its longest, as most
    trainers have them; `length` is ours: sorted by length, and more of the shorter ones in one."""


def take_turns(turns: Sequence[Turn]) -> None:
    """From now on this process's steps are cut so."""
    import trainer.batching.step_loader as step_loader
    from bench.plain import in_order

    take = step_loader.Steps.__getitem__

    def one(self: "Steps", number: int) -> "RankStep":
        round_, place = divmod(number, len(turns))
        turn = in_round(turns, round_, place)
        plan = Plan(
            micro_batch=turn.micro_batch, effective_batch=self.plan.effective_batch,
            world_size=self.plan.world_size,
        )  # fmt: skip
        step_loader.cut = in_order if turn.cut == "fixed" else cut  # type: ignore[attr-defined]
        return take(replace(self, plan=plan), round_)

    step_loader.Steps.__getitem__ = one  # type: ignore[method-assign]


def in_round(turns: Sequence[Turn], round_: int, place: int) -> Turn:
    """The turn at that place of the round."""
    return turns[(place + round_) % len(turns)]


def timed(turns: Sequence[Turn], rounds: int, device: str, *flags: str) -> list[dict[str, Any]]:
    """Each turn's figures over the rounds; `flags` are those of `python -m trainer`, in its environment.

    Raises RuntimeError with its last words when the run fails.
    """
    steps = (rounds + 1) * len(turns)
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "--max-steps",
            str(steps),
            "--checkpoint-every",
            str(steps),
            "--output-dir",
            folder,
        ]
        asked = json.dumps([asdict(turn) for turn in turns])
        done = subprocess.run(
            [sys.executable, "-P", "-m", "bench.turns", "--device", device, *flags, *words, "--fresh"],
            env={**worker_environment(device, 1), "PYTHONPATH": str(ROOT), ASKED: asked},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no word"])[-1]
            raise RuntimeError(f"the steps in turns failed: {last[:300]}")
        return figures(turns, metrics(folder))


def figures(turns: Sequence[Turn], steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each turn: its speeds round by round, the first round left out, and how it was cut."""
    found: dict[Turn, list[Mapping[str, Any]]] = {turn: [] for turn in turns}
    for number, step in enumerate(steps):
        round_, place = divmod(number, len(turns))
        if round_:
            found[in_round(turns, round_, place)].append(step)
    return [
        {
            **asdict(turn),
            "samples_per_second": [step["samples_per_second"] for step in own],
            "median_samples_per_second": statistics.median(s["samples_per_second"] for s in own),
            "micro_batches": statistics.fmean(step["micro_batches"] for step in own),
            "padding_efficiency": statistics.fmean(1 - step["padding"] for step in own),
        }
        for turn, own in found.items()
    ]


if __name__ in ("__main__", "__mp_main__"):  # the latter is a loader process
    take_turns([Turn(**turn) for turn in json.loads(os.environ[ASKED])])

if __name__ == "__main__":
    from trainer.launch.entry import main

    main()
