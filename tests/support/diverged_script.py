"""One of two gloo processes whose sharded run meets a row without a loss: what each raises."""

from dataclasses import replace
from pathlib import Path

from autotune.errors import DivergedError
from tests.support.poisoned import ROWS, poisoned, rows_with_fire
from tests.support.runs import run, settings
from trainer.data.sample_order import PlainSteps, SampleOrder

BAD = int(PlainSteps(SampleOrder(ROWS, 3), 8).step(2)[5])
"""A row of the third step, counted from 0."""


def prepare(folder: Path) -> None:
    """Writes the model and its rows."""
    poisoned(folder / "gpt2")
    rows_with_fire(folder / "fire.jsonl", BAD)


def main(folder: Path) -> str:
    """The message of the run in that folder."""
    one = settings(folder / "fire.jsonl", folder / "diverged", world_size=2)
    sharded = replace(one.workload, model=str(folder / "gpt2"), fsdp=True)
    try:
        run(replace(one, workload=sharded))
    except DivergedError as error:
        return str(error)
    raise AssertionError("every step was taken")
