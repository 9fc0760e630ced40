"""A run that runs out of memory on its way: it resumes with a smaller micro-batch and is the same run."""

import resource
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import profiles
from autotune.devices.host import HostMeter
from autotune.devices.selection import open_devices
from tests.support.commands import steps
from tests.support.processes import each_within
from tests.support.runs import chosen, notices, rows_file, run
from trainer.events import StepEnded, TrainingStarted
from trainer.supervisor.job import TrainJob
from trainer.supervisor.training import run_training

STEPS = 6
nothing_hangs = each_within(300)


def worker() -> int:
    """The process id of the one that trains: other tests may have left children of their own."""
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # one that has ended
            if "trainer" in child.cmdline():
                return int(child.pid)
    raise AssertionError("nothing trains")


def train(folder: Path, name: str, *, refused: int, micro_batch: int, heard: list[object]) -> None:
    """Fills `heard` with the events of a run whose worker gets no more memory after its second step, so many times.

    At the last of them Ctrl-C is pressed.
    """
    rows = rows_file(folder / "rows.jsonl", 40)
    host, left = HostMeter(), refused
    found = profiles.load("small")

    def emit(event: object) -> None:
        nonlocal left
        heard.append(event)
        if isinstance(event, StepEnded) and left and event.record["step"] >= 2:
            left -= 1
            pid = worker()
            _, hard_limit = resource.prlimit(pid, resource.RLIMIT_DATA)
            resource.prlimit(pid, resource.RLIMIT_DATA, (2**20, hard_limit))
            if not left:
                signal.raise_signal(signal.SIGINT)

    with open_devices("cpu", num_processes=1, vram_limit=2**30, host=host) as devices:
        settings = chosen(
            "small", folder / name, data=(str(rows),), micro_batch=micro_batch, dropout=0.0,
            max_steps=STEPS, checkpoint_every=1,
        )  # fmt: skip
        job = TrainJob(
            settings=settings, profile=found, devices=devices, host=host, emit=emit,
            log_path=folder / f"{name}.log",
        )  # fmt: skip
        run_training(job)


def test_a_run_out_of_memory_resumes_with_half_the_micro_batch(tmp_path: Path) -> None:
    """From micro-batch 4 to 2. Ctrl-C then begins nothing anew where memory runs out while the run ends.

    It is resumed by hand, and every step is the undisturbed run's.
    """
    events: list[object] = []
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, "refused", micro_batch=4, refused=2, heard=events)
    rows = str(tmp_path / "rows.jsonl")
    for name in ("refused", "whole"):
        run(
            chosen("small", tmp_path / name, data=(rows,), micro_batch=4, dropout=0.0,
                   max_steps=STEPS)
        )  # fmt: skip

    began = [event for event in events if isinstance(event, TrainingStarted)]
    ended, interrupted = [text for text in notices(events) if "out of memory" in text]
    assert [start.micro_batch for start in began] == [4, 2]
    assert [start.first_step > 1 for start in began] == [False, True]
    assert ended.startswith("out of memory at micro-batch 4: ")
    assert ended.endswith(
        "; resuming from the last checkpoint, or from the start without one, with micro-batch 2"
    )
    assert interrupted.startswith("out of memory at micro-batch 2: ")
    for one, other in zip(steps(tmp_path / "whole"), steps(tmp_path / "refused"), strict=True):
        assert (one["step"], one["samples"]) == (other["step"], other["samples"])
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
