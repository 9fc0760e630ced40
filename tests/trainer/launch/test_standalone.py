"""What a training process prints under a launcher of the user's own."""

import json
import math
import os
import signal
from pathlib import Path

import pytest

from trainer.events import CheckpointSaved, Evaluated, StepEnded, TrainingStarted
from trainer.launch.standalone import EventLines, StopSignal, as_json

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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_before_the_first_step_ends_the_process_and_a_second_one_does_not_cut_the_end(
    number: signal.Signals,
) -> None:
    """A launcher and a terminal both send one."""
    StopSignal()

    with pytest.raises(SystemExit) as ended:
        signal.raise_signal(number)
    for second in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.raise_signal(second)

    assert ended.value.code == 130


def test_a_signal_after_a_step_is_seen_after_the_next() -> None:
    """The step that is under way is saved."""
    should_stop = StopSignal()
    before = should_stop()

    signal.raise_signal(signal.SIGHUP)

    assert (before, should_stop()) == (False, True)


def test_a_launcher_under_nohup_survives_a_hangup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    StopSignal()

    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
