"""Runs probes in worker processes and turns how they end into trials.

One group of workers serves many sizes. It is replaced after anything but a clean probe, since an
allocation that failed or a process that died leaves nothing to rely on. How a probe can end:

    report          FITS or OVER, by the memory identity
    out of memory   OOM, whether an allocation was refused or the kernel killed the process
    killed          SIGKILL without a trace of the kernel's OOM killer: tried once more, then OOM
    crashed, hung   tried once more, then a WorkerError: neither says anything about memory
"""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from autotune.cards import Cards, budgets
from autotune.channel import Message
from autotune.errors import ChatlmError, WorkerError
from autotune.events import Emit, Notice, ReadingTaken
from autotune.host import HostMeter
from autotune.launch import memory_environment, worker_command, worker_environment
from autotune.probe import Report
from autotune.trial import DeviceBudget, Trial
from autotune.verdict import Verdict
from autotune.workers import Workers

TICK = 0.05
"""Seconds between two readings of the meters."""
SHOW_EVERY = 4
"""Readings a reading is emitted once in."""
HOST_FLOOR = 0.03
"""Share of host memory that must stay free; below it the workers are stopped."""
FAILURES = ("oom", "refused", "crash")
"""What a worker says of its own end, that which explains the other ranks' first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSpec:
    """What to probe: `module:function`, called in a fresh process with plain settings."""

    path: str
    settings: Mapping[str, Any]
    world_size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a trial must hold; shares of a whole."""

    target: float
    target_ram: float
    silence: float = 600.0
    """Seconds without a word from any worker in a probe after which it counts as hung."""
    building: float = 7200.0
    """The same while it reads the model and tokenises the data, which says nothing."""


@dataclass(slots=True)
class Ending:
    """How one attempt at a probe ended: reports of all ranks, or a kind and a text."""

    reports: list[Report] = field(default_factory=list)
    kind: str = "report"
    text: str = ""


class Prober:
    """Probes sizes one after another; use it in a `with`, so that no worker outlives it.

    Budgets are read before the first worker starts, and again before each replacement.
    """

    def __init__(
        self,
        spec: WorkloadSpec,
        *,
        cards: Cards,
        host: HostMeter,
        limits: Limits,
        emit: Emit,
        log_path: Path,
    ) -> None:
        self.spec = spec
        self.cards = cards
        self.host = host
        self.limits = limits
        self.emit = emit
        self.log_path = log_path
        self.budgets: tuple[DeviceBudget, ...] = ()
        self._workers: Workers | None = None
        self._sampled: list[int] = []
        self._host_peak = 0
        self._host_used = 0
        self._ticks = 0
        self._oom_kills = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def open(self) -> dict[str, Any]:
        """Starts the workers and returns the facts of the workload that they built.

        Raises:
            ChatlmError: what the workload refused, or that a worker never became ready.
        """
        for attempt in (1, 2):
            ready = self._start()
            if isinstance(ready, dict):
                return ready
            self.close()
            if ready.kind == "refused":
                raise ChatlmError(ready.text)
            if ready.kind == "oom":
                raise WorkerError(
                    f"the model and its optimizer alone do not fit: {ready.text}; use a smaller "
                    f"model, or a device or --vram-limit with more memory"
                )
            if attempt == 2 or ready.kind == "crash":
                raise self._error(ready, "while it built the workload")
        raise AssertionError("unreachable")

    def probe(self, size: int) -> Trial:
        """One trial at that size.

        Raises:
            WorkerError: the workers crashed or hung twice.
            ChatlmError: what the workload refused.
        """
        started = time.monotonic()
        for attempt in (1, 2):
            if self._workers is None:
                self.open()
            ending = self._attempt(size)
            if ending.kind == "report":
                return self._judge(size, ending.reports, time.monotonic() - started)
            out_of_memory = ending.kind == "oom" or (ending.kind == "killed" and attempt == 2)
            self.close()
            if ending.kind == "refused":
                raise ChatlmError(ending.text)
            if out_of_memory:
                return self._failed(size, ending, time.monotonic() - started)
            if attempt == 1:
                what = _as_clause(ending)
                self.emit(Notice(text=f"probe {size}: the worker {what}; trying once more"))
        raise self._error(ending, f"at micro-batch {size}, twice")

    def close(self) -> None:
        """Ends the workers, if any."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def _start(self) -> dict[str, Any] | Ending:
        survey = self.cards.survey()
        self.budgets = budgets(survey, self.limits.target)
        self._reset_readings()
        settings = {**self.spec.settings, "memory_limit": self.cards.allowance(survey)}
        self._workers = Workers(
            worker_command("autotune.worker", self.spec.world_size),
            environment=worker_environment(
                memory_environment(self.cards.kind), self.spec.world_size
            ),
            log_path=self.log_path,
        )
        facts: dict[int, dict[str, Any]] = {}

        def take(message: Message) -> bool:
            if message["type"] == "hello" and message["present"] == self.spec.world_size:
                self._send({"type": "build", "workload": self.spec.path, "settings": settings})
            if message["type"] == "ready":
                facts[message["rank"]] = message["facts"]
            return len(facts) == self.spec.world_size

        ending = self._wait(take, self.limits.building)
        return ending if ending.kind != "report" else facts[0]

    def _attempt(self, size: int) -> Ending:
        self._reset_readings()
        reports: dict[int, Report] = {}

        def take(message: Message) -> bool:
            if message["type"] == "report":
                reports[message["rank"]] = Report(**message["report"])
            return len(reports) == self.spec.world_size

        self._send({"type": "probe", "size": size})
        ending = self._wait(take, self.limits.silence)
        ending.reports = [reports[rank] for rank in sorted(reports)]
        return ending

    def _wait(self, take: Callable[[Message], bool], silence: float) -> Ending:
        """Reads messages and meters until `take` says that all is there, or something ended it."""
        assert self._workers is not None
        heard = time.monotonic()
        while True:
            ended = self._workers.ended()  # asked first: its last words are read after it
            messages = self._workers.receive(TICK)
            if messages:
                heard = time.monotonic()
            failures = [message for message in messages if message["type"] in FAILURES]
            if failures:
                return self._failure(min(failures, key=lambda m: FAILURES.index(m["type"])))
            for message in messages:
                if take(message):
                    return Ending()
            if any(message["type"] == "gone" for message in messages) or (ended and not messages):
                return self._how_it_ended()
            if not self._read_meters():
                return Ending(kind="oom", text="host memory ran out, the workers were stopped")
            if time.monotonic() - heard > silence:
                return Ending(kind="hung", text=f"was silent for {silence:.0f} s")

    def _failure(self, message: Message) -> Ending:
        if message["type"] == "crash" and self.spec.world_size > 1:
            silent = (
                self._how_it_ended()
            )  # when one rank is killed, the others crash waiting for it
            if silent.kind in ("oom", "killed"):
                return silent
        return Ending(kind=message["type"], text=message["text"])

    def _how_it_ended(self) -> Ending:
        assert self._workers is not None
        code = self._workers.exit_code()
        if self.host.oom_kills() > self._oom_kills:
            return Ending(kind="oom", text="host memory: the kernel killed the worker")
        if code == -signal.SIGKILL:
            return Ending(kind="killed", text="was killed (SIGKILL)")
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Ending(kind="died", text=f"died ({how})")

    def _reset_readings(self) -> None:
        self._sampled = [0] * len(self.budgets)
        self._host_peak = 0
        self._host_used = 0
        self._oom_kills = self.host.oom_kills()

    def _read_meters(self) -> bool:
        """Samples every meter; False when the host is about to run out of memory."""
        assert self._workers is not None
        resident = self._workers.resident()
        devices = self.cards.read(resident)
        host = self.host.read()
        self._sampled = [
            max(highest, device.used)
            for highest, device in zip(self._sampled, devices, strict=True)
        ]
        self._host_peak = max(self._host_peak, sum(resident.values()))
        self._host_used = max(self._host_used, host.used)
        if self._ticks % SHOW_EVERY == 0:
            self.emit(ReadingTaken(devices=devices, host=host, workers=sum(resident.values())))
        self._ticks += 1
        return host.free > HOST_FLOOR * host.total

    def _judge(self, size: int, reports: Sequence[Report], seconds: float) -> Trial:
        self._read_meters()  # a quick probe has ended before the first reading
        measured = self.cards.measure(reports, self.budgets, self._sampled)
        tightest = max(
            range(len(measured)), key=lambda i: measured[i].peak - self.budgets[i].budget
        )
        worst = measured[tightest]
        reason = None
        verdict = Verdict.FITS
        host = self.host.read()
        if worst.peak > self.budgets[tightest].budget:
            verdict = Verdict.OVER
        elif self._host_used > self.limits.target_ram * host.total:
            verdict, reason = Verdict.OVER, "host memory"
        elif any(report.retries for report in reports):
            verdict, reason = Verdict.OVER, "the allocator thrashed"
        slowest = max(report.seconds for report in reports)
        return Trial(
            size=size,
            verdict=verdict,
            peak=worst.peak,
            seconds=seconds,
            budgets=self.budgets,
            device_peaks=tuple(device.peak for device in measured),
            tightest=tightest,
            fixed=worst.fixed,
            growing=worst.growing,
            host_peak=self._host_peak,
            samples_per_second=sum(report.samples for report in reports) / slowest,
            tokens_per_second=sum(report.tokens for report in reports) / slowest,
            reason=reason,
        )

    def _failed(self, size: int, ending: Ending, seconds: float) -> Trial:
        return Trial(
            size=size,
            verdict=Verdict.OOM,
            peak=None,
            seconds=seconds,
            budgets=self.budgets,
            host_peak=self._host_peak,
            reason=ending.text.splitlines()[0] if ending.text else None,
        )

    def _error(self, ending: Ending, when: str) -> WorkerError:
        return WorkerError(f"the worker {_as_clause(ending)} {when}; its log is {self.log_path}")

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._workers is not None
        self._workers.send(message)


def _as_clause(ending: Ending) -> str:
    return f"crashed ({ending.text.splitlines()[0]})" if ending.kind == "crash" else ending.text
