"""Emits what the workers of a run send, and readings of the meters between these events."""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, assert_never

from autotune.cause import Cause
from autotune.errors import ChatlmError, DeviceError, OutOfMemory, WorkerError
from autotune.events import Notice, ReadingTaken
from autotune.readings import DeviceBudget
from autotune.workers.group import WorkerGroup
from autotune.workers.messages import Failed
from autotune.workers.watchdog import Watchdog
from trainer import events
from trainer.supervisor.failure_advice import advice, lost_a_peer
from trainer.supervisor.fingerprint import differences, fingerprint
from trainer.supervisor.job import TrainJob

TICK = 0.25
"""Seconds between two readings of the meters."""


class ProfileMismatch(Exception):
    """The profile's fingerprint is not this machine's; the text names the differences."""


@dataclass
class Relay:
    """Emits the workers' events and the meters' readings."""

    job: TrainJob
    workers: WorkerGroup[events.FromTrainer]
    budgets: tuple[DeviceBudget, ...]
    is_compared: bool
    """Whether the profile is compared with this machine, data and settings."""
    ended: events.TrainingEnded | None = None
    stops: int = 0
    _steps: int | None = None
    """Steps of the whole run; None before it has started."""
    _done: int = 0
    _saved: int = 0
    _read_at: float = 0.0
    _watchdog: Watchdog = field(default_factory=Watchdog)

    def take(self, messages: Sequence[tuple[int, events.FromTrainer]]) -> None:
        """Handles the messages of one tick, and reads the meters.

        Raises:
            ChatlmError: a worker failed.
        """
        for _, message in messages:
            self._handle(message)
        if self._watchdog.check(bool(messages)) is not None:
            self.job.emit(Notice(text=hang_notice(self._watchdog, self.workers.pids.values())))
            self._watchdog.longest = math.inf  # once, until the next step
        if self.ended is not None or time.monotonic() - self._read_at < TICK:
            return
        self._read_at = time.monotonic()
        try:
            group = self.job.devices.group
            devices = group.read(self.workers.held(with_libraries=group.counts_libraries))
        except DeviceError as error:  # the run may still succeed: its workers decide
            self.job.emit(Notice(text=str(error)))
            devices = ()
        workers = sum(self.workers.resident().values())
        self.job.emit(ReadingTaken(devices=devices, host=self.job.host.read(), workers=workers))

    @property
    def is_under_way(self) -> bool:
        """Whether a resume has less to do: a step was taken, and the checkpoint of a last step was saved."""
        return self._done > 0 and (self._done != self._steps or self._saved == self._done)

    def stop(self) -> None:
        """Asks the workers to save and exit; raises KeyboardInterrupt the second time, or before the first step."""
        self.stops += 1
        if self.stops > 1 or self._steps is None:
            raise KeyboardInterrupt
        self.workers.send(events.Stop())
        self.job.emit(Notice(text="stopping after this step; press Ctrl-C again to stop at once"))

    def _handle(self, message: events.FromTrainer) -> None:
        match message:
            case events.Built():
                if self.is_compared:
                    self._compare(message.facts)
                self.workers.send(events.Go())
                return
            case Failed():
                self._fail(message)
                return
            case events.TrainingStarted():
                self._steps = message.steps
                message = replace(message, devices=self.budgets)
            case events.StepEnded():
                self._done = message.record["step"]
                self._watchdog.step(message.record["seconds"])
            case events.CheckpointSaved():
                self._saved = message.step
            case events.TrainingEnded():
                self.ended = message
            case Notice() | events.Tokenising() | events.Evaluated():
                pass
            case other:
                assert_never(other)
        self.job.emit(message)

    def _compare(self, info: dict[str, Any]) -> None:
        job = self.job
        found = fingerprint(info, job.devices)
        if differing := differences(job.profile, found, job.settings, self.budgets):
            raise ProfileMismatch("; ".join(differing))

    def _fail(self, failed: Failed) -> None:
        """Raises the error of a worker that failed; returns when a peer that is gone explains it."""
        settings = self.job.settings
        if failed.cause is Cause.REFUSED:
            raise ChatlmError(failed.text, failed.hint)
        if failed.cause is Cause.DEVICE_OOM:
            raise OutOfMemory(
                f"out of memory at micro-batch {settings.plan(settings.world_size)}: {failed.text.splitlines()[0]}",
                "use a smaller --micro-batch, or `chatlm autotune` to find the largest",
            )
        if settings.world_size > 1 and lost_a_peer(failed.text):
            return  # the peer's own message follows, or its exit code tells: see `explain_exit`
        known = advice(f"{failed.text}\n{self.workers.log_tail()}")
        raise WorkerError(
            f"training crashed ({failed.text})",
            "; ".join(filter(None, [f"its log is {self.workers.log_path}", known])),
        )


def hang_notice(watchdog: Watchdog, pids: Iterable[int]) -> str:
    """The line for a run that sent no message for too long; it may hang, but is not ended."""
    return (
        f"no message for {watchdog.longest / 60:.0f} minutes, and the slowest step took "
        f"{watchdog.slowest_step:.1f} s: the run may hang, as NCCL does when a process is gone; "
        f"`py-spy dump --pid N` shows where a process is ({', '.join(map(str, pids))}); "
        "Ctrl-C, and again after a second, ends the run"
    )
