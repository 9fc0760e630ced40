"""`chatlm train` seen from outside the workers: start them, relay what they say, end them well.

It imports no torch. The supervisor outlives its workers: whatever ends one becomes a message.
"""

import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autotune.cards import budgets
from autotune.channel import Message
from autotune.errors import ChatlmError, DeviceError, OutOfMemory, WorkerError
from autotune.events import Emit, Notice, ProbeEnded, ProbeStarted, ReadingTaken
from autotune.host import HostMeter
from autotune.launch import memory_environment, worker_command, worker_environment
from autotune.prober import Limits, Prober, WorkloadSpec
from autotune.trial import DeviceBudget
from autotune.workers import Workers
from profiles import Profile
from profiles.schema import Fingerprint
from trainer.devices import Devices
from trainer.evaluations import evaluated
from trainer.events import (
    CheckpointSaved,
    StepEnded,
    Tokenising,
    TrainingEnded,
    TrainingStarted,
)
from trainer.faults import advice, lost_a_neighbour
from trainer.settings import TrainSettings
from trainer.silence import Silence
from trainer.tuned import check_still_fits, differences, fingerprint

TICK = 0.25
"""Seconds between two readings of the meters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """A training run and everything around it."""

    settings: TrainSettings
    profile: Profile
    devices: Devices
    host: HostMeter
    emit: Emit
    log_path: Path


def run_training(job: TrainJob) -> TrainingEnded:
    """Trains, after one probe of the profile's size where its figures are another machine's.

    Raises:
        ProfileError: the size does not hold its target here.
        OutOfMemory, WorkerError, ChatlmError: as `supervise` does.
    """
    try:
        return supervise(job, job.profile.fingerprint)
    except Stale as stale:
        sizes = job.settings.plan(job.settings.world_size)
        job.emit(
            Notice(
                text=f"profile {job.settings.profile} was measured elsewhere ({'; '.join(stale.differences)}): "
                f"probing micro-batch {sizes} once"
            )
        )
        probe_again(job)
        # what each side takes of the memory was measured elsewhere too
        return supervise(replace(job, settings=replace(job.settings, shares=None)), None)


def probe_again(job: TrainJob) -> None:
    """Raises ProfileError when the run's size does not hold the profile's target any more."""
    size = job.settings.micro_batch
    memory = job.profile.memory
    limits = Limits(target=memory.target_vram or 1.0, target_ram=memory.target_ram or 1.0)
    spec = WorkloadSpec(
        path="trainer.workload:build",
        settings={
            **job.settings.workload.as_json(),
            "effective": job.settings.effective_batch,
            "effective_fixed": True,
        },
        world_size=job.settings.world_size,
    )
    with Prober(
        spec, cards=job.devices.cards, host=job.host, limits=limits, emit=job.emit,
        log_path=job.log_path,
    ) as prober:  # fmt: skip
        prober.open()
        job.emit(ProbeStarted(size=size, low=0, high=size + 1))
        trial = prober.probe(job.settings.plan(job.settings.world_size).sizes)
        job.emit(ProbeEnded(trial=trial, low=0, high=size + 1))
        check_still_fits(trial, prober.budgets[trial.tightest].budget, job.settings.profile)


class Stale(Exception):
    """The profile's fingerprint is not this machine's; carries what differs."""

    def __init__(self, differences: list[str]) -> None:
        super().__init__("; ".join(differences))
        self.differences = differences


def supervise(job: TrainJob, expected: Fingerprint | None) -> TrainingEnded:
    """Runs the training in worker processes and returns how it ended.

    Ctrl-C lets the workers finish their step and save a checkpoint; a second one ends them at once.

    Raises:
        Stale: what the workers found is not what was `expected`.
        OutOfMemory: the device or the host had too little memory for it.
        WorkerError: a worker crashed or was killed.
        ChatlmError: what a worker refused.
    """
    cards, host = job.devices.cards, job.host
    survey = cards.survey()
    known = budgets(survey, job.profile.memory.target_vram or 1.0)
    settings = replace(
        job.settings,
        workload=replace(job.settings.workload, memory_limit=cards.allowance(survey)),
        others=tuple(reading.used for reading in survey) if cards.kind == "cuda" else (),
        budgets=tuple(device.budget for device in known),
        device_names=tuple(device.name for device in known),
    )
    kills = host.oom_kills()
    environment = worker_environment(memory_environment(cards.kind), settings.world_size)
    command = worker_command("trainer", settings.world_size)
    with (
        Interrupts() as interrupts,
        Workers(command, environment=environment, log_path=job.log_path) as workers,
    ):
        relay = Relay(job, settings, workers, expected, known)
        while relay.ended is None:
            ended = workers.ended()  # asked first: its last words are read after it
            heard = relay.tick()
            if interrupts.count > relay.stops:
                relay.stop()
            if relay.ended is None and not heard and (ended or relay.gone):
                raise why(workers, host.oom_kills() > kills, job.log_path)
        return relay.ended


class Interrupts:
    """Counts Ctrl-C, SIGTERM and SIGHUP instead of raising in the middle of a message."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> "Interrupts":
        self._before = [signal.signal(number, self._note) for number in self.SIGNALS]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(self.SIGNALS, self._before, strict=True):
            signal.signal(number, handler)

    def _note(self, *_: object) -> None:
        self.count += 1


class Relay:
    """Turns the workers' messages into events, and the meters into readings."""

    def __init__(
        self,
        job: TrainJob,
        settings: TrainSettings,
        workers: Workers,
        expected: Fingerprint | None,
        budgets: tuple[DeviceBudget, ...],
    ) -> None:
        self.job = job
        self.budgets = budgets
        self.settings = settings
        self.workers = workers
        self.expected = expected
        self.emit = job.emit
        self.ended: TrainingEnded | None = None
        self.gone = False
        """Whether a worker has closed its wire; the others may still have something to say."""
        self.stops = 0
        self._started = False
        self._read_at = 0.0
        self._silence = Silence()

    def tick(self) -> bool:
        """Handles what arrives within a moment; whether anything did.

        Raises:
            ChatlmError: a worker said that it failed.
        """
        messages = self.workers.receive(TICK)
        for message in messages:
            self._silence.hear(message, time.monotonic())
            self._handle(message)
        if said := self._silence.notice(time.monotonic(), self.workers.pids.values()):
            self.emit(Notice(text=said))
        if time.monotonic() - self._read_at >= TICK:
            self._read_at = time.monotonic()
            self._show_meters()
        return bool(messages)

    def _show_meters(self) -> None:
        resident = self.workers.resident()
        try:
            devices = self.job.devices.cards.read(resident)
        except DeviceError as error:  # the run may go on: it is for its workers to fail
            self.emit(Notice(text=str(error)))
            devices = ()
        self.emit(
            ReadingTaken(devices=devices, host=self.job.host.read(), workers=sum(resident.values()))
        )

    def stop(self) -> None:
        """Asks the workers to save and end; raises KeyboardInterrupt the second time.

        Before the first step there is nothing to save: then at once.
        """
        self.stops += 1
        if self.stops > 1 or not self._started:
            raise KeyboardInterrupt
        self.workers.send({"type": "stop"})
        self.emit(Notice(text="stopping after this step; press Ctrl-C again to stop at once"))

    def _handle(self, message: Message) -> None:
        match message["type"]:
            case "hello" if message["present"] == self.settings.world_size:
                self.workers.send({"type": "train", "settings": self.settings.as_json()})
            case "built":
                found = fingerprint(message["facts"], self.job.devices)
                if self.expected is not None:
                    differing = differences(self.job.profile, found, self.settings, self.budgets)
                    if differing:
                        raise Stale(differing)
                self.workers.send({"type": "go"})
            case "tokenising":
                self.emit(Tokenising(**_fields(message)))
            case "notice":
                self.emit(Notice(text=message["text"]))
            case "started":
                self._started = True
                self.emit(TrainingStarted(**_fields(message), devices=self.budgets))
            case "step":
                self.emit(StepEnded(record=message["record"]))
            case "evaluated":
                self.emit(evaluated(_fields(message)))
            case "checkpoint":
                self.emit(CheckpointSaved(step=message["step"], path=message["path"]))
            case "done":
                self.ended = TrainingEnded(
                    result=message["result"], interrupted=message["interrupted"]
                )
                self.emit(self.ended)
            case "gone":
                self.gone = True
            case "oom":
                said = message["text"].splitlines()[0]
                raise OutOfMemory(
                    f"out of memory at micro-batch {self.settings.plan(self.settings.world_size)}: {said}; "
                    f"use a smaller --micro-batch, or `chatlm autotune` to find the largest"
                )
            case "refused":
                raise ChatlmError(message["text"])
            case "crash" if self.settings.world_size > 1 and lost_a_neighbour(message["text"]):
                pass  # the neighbour says why it ended, or its exit code does: see `why`
            case "crash":
                known = advice(f"{message['text']}\n{self.workers.log_tail()}")
                raise WorkerError(
                    f"training crashed ({message['text']}); its log is {self.workers.log_path}"
                    f"{f'; {known}' if known else ''}"
                )


def _fields(message: Message) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key not in ("type", "rank")}


def why(workers: Workers, killed_by_kernel: bool, log_path: Path) -> ChatlmError:
    """What to say of a worker that is gone without a word."""
    code = workers.exit_code()
    if killed_by_kernel:
        return OutOfMemory(
            "the kernel killed a worker: host memory ran out; use fewer processes or a smaller "
            "--micro-batch; the same command goes on from the last checkpoint, if there is one"
        )
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    known = advice(workers.log_tail(), exit_code=code)
    return WorkerError(
        f"a training worker died ({how}); its log is {log_path}; {f'{known}; ' if known else ''}"
        f"the same command goes on from the last checkpoint, if there is one"
    )
