"""Training runs inside the test's own process: the real loop, a tiny model, a few rows."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import profiles
from autotune.choices import DeviceKind
from autotune.devices.group import EmulatedDevices
from autotune.devices.host import HostMeter
from autotune.devices.selection import DeviceSelection
from tests.support.probers import notices as notices
from trainer.config.options import TrainOptions
from trainer.config.resolve import resolve
from trainer.config.settings import TrainSettings, WorkloadSettings
from trainer.events import Progress, StepEnded, TrainingEnded
from trainer.run.loop import train
from trainer.supervisor.job import TrainJob

Messages = list[Progress]


def rows_file(path: Path, count: int) -> Path:
    """That many rows, of different lengths."""
    rows = [
        {"prompt": f"第{n}问" * (1 + n % 5), "response": f"答{n}" * (1 + n % 7)}
        for n in range(count)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def settings(rows: Path, output: Path, **changes: Any) -> TrainSettings:
    """A run of 8 steps of 8 samples."""
    workload = WorkloadSettings(
        data=(str(rows),), max_source_length=16, max_target_length=16, dropout=0.0, seed=3
    )
    run = TrainSettings(
        workload=workload, micro_batch=4, effective_batch=8, output_dir=str(output), max_steps=8,
        checkpoint_every=2, profile="small",
    )  # fmt: skip
    return replace(run, **changes)


def train_job(folder: Path) -> TrainJob:
    """Such a run under a supervisor that nobody listens to, on one emulated card."""
    return TrainJob(
        settings=settings(folder / "rows.jsonl", folder / "run"), profile=profiles.load("small"),
        devices=DeviceSelection(group=EmulatedDevices(2**30, 1), world_size=1), host=HostMeter(),
        emit=lambda event: None, log_path=folder / "log",
    )  # fmt: skip


def chosen(
    profile: Path | str, output: Path, *, device: DeviceKind = "cpu", **options: Any
) -> TrainSettings:
    """What `chatlm train` with these options tells its one worker."""
    found = TrainOptions(profile=str(profile), output_dir=str(output), **options)
    return resolve(profiles.load(str(profile)), found, device=device, world_size=1)


def run(
    settings: TrainSettings, *, stop_after: int | None = None, heard: Messages | None = None
) -> Messages:
    """What was said in the run, which is asked to stop once that step is done."""
    said = [] if heard is None else heard

    def should_stop() -> bool:  # asked before a step is said: the step that is under way counts
        done = [event.record["step"] for event in said if isinstance(event, StepEnded)]
        return stop_after is not None and max(done, default=0) + 1 >= stop_after

    train(settings, said.append, confirm=lambda: None, should_stop=should_stop)
    return said


def ended(said: Messages) -> TrainingEnded:
    """How the run ended: its last message."""
    assert isinstance(said[-1], TrainingEnded)
    return said[-1]
