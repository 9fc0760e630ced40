"""What a training process prints under a launcher of the user's own."""

import json
import math
import os
from pathlib import Path

import pytest

from trainer.events import CheckpointSaved, Evaluated, StepEnded, TrainingStarted
from trainer.launch.standalone import EventLines, as_json

STARTED = TrainingStarted(
    model="m", rows=8, first_step=1, steps=2, effective_batch=4, micro_batch=2, accumulation=2,
    world_size=1, precision="fp32", output_dir="run",
)  # fmt: skip


def test_each_event_is_printed_with_its_type_and_its_fields() -> None:
    """A started run names no devices: only `chatlm train` knows their budgets."""
    saved = as_json(CheckpointSaved(step=2, path="run/checkpoint-2"))
    started = as_json(STARTED)

    assert saved == {"type": "checkpoint", "step": 2, "path": "run/checkpoint-2"}
    assert as_json(StepEnded(record={"step": 1})) == {"type": "step", "record": {"step": 1}}
    assert started["type"] == "started"
    assert "devices" not in started


def test_an_evaluation_is_printed_as_in_its_file() -> None:
    """With the perplexity, and null for a loss that is no number."""
    printed = as_json(Evaluated(step=1, loss=math.nan))

    assert (printed["type"], printed["loss"], printed["step"]) == ("evaluated", None, 1)
    assert "perplexity" in printed
    json.dumps(printed, allow_nan=False)


def test_a_reader_that_leaves_ends_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m chatlm.trainer | head -1` reads one line of many."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as reader, os.fdopen(writing, "w") as writer:
        lines = EventLines(writer)
        lines(CheckpointSaved(step=1, path="a"))
        first = json.loads(reader.readline())
        reader.close()
        lines(CheckpointSaved(step=2, path="b"))
        lines(CheckpointSaved(step=3, path="c"))

    assert first["step"] == 1
    assert not lines.has_failed
    assert capsys.readouterr().err == ""


def test_a_full_disk_is_told_once_and_ends_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    """The exit status then says that lines are missing."""
    with Path("/dev/full").open("w") as full:
        lines = EventLines(full)
        lines(CheckpointSaved(step=1, path="a"))
        lines(CheckpointSaved(step=2, path="b"))

    assert lines.has_failed
    assert capsys.readouterr().err == (
        "chatlm: cannot write to standard output: No space left on device\n"
    )
