"""One group of workers: sends a request to all ranks, and returns their answers or raises their failure.

It decides nothing about a size; `prober` does.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from autotune.cause import Cause, Failure
from autotune.devices.budget import device_breach, host_breach
from autotune.devices.group import DeviceGroup
from autotune.devices.host import HostMeter
from autotune.devices.processes import cpu_seconds_of_families, proportional, resident
from autotune.devices.sampler import MemorySampler
from autotune.errors import UsageError
from autotune.events import Emit
from autotune.readings import DeviceBudget, Held, Report
from autotune.workers import messages
from autotune.workers.group import WorkerGroup
from autotune.workers.launch import worker_command, worker_environment
from autotune.workers.messages import Build, Failed, FromProbe, Request
from autotune.workers.watchdog import MIN_SILENCE, Watchdog

TICK = 0.05
"""Seconds between two readings of the meters."""
SHOW_EVERY = 4
"""One reading in this many is emitted."""
A = TypeVar("A", messages.Ready, Report, messages.DataWait, messages.MemoryFractions)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSpec:
    """What to probe: `module:function`, which a fresh process calls with plain settings."""

    path: str
    settings: Mapping[str, Any]
    world_size: int = 1

    def __post_init__(self) -> None:
        """Raises UsageError for a path of another form."""
        module, _, function = self.path.partition(":")
        if not all(name.isidentifier() for name in (*module.split("."), *function.split("."))):
            raise UsageError(
                f"workload {self.path!r} is not of the form module:function",
                "write it like trainer.workload:build",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Shares of device and host memory that a trial may take, and how long it may be silent, in seconds."""

    target: float
    target_ram: float
    silence: float = MIN_SILENCE
    """Without a message from any worker in a probe."""
    building: float = 7200.0
    """The same while the workers read the model and tokenise the data."""
    idle: float = 10.0
    """Without a message and without CPU time in a probe."""


class WorkersEnded(Exception):
    """The workers ended before all of them had answered; carries the failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure


class Session:
    """Workers that build a workload and answer requests about it; always `close` it."""

    def __init__(
        self, spec: WorkloadSpec, *, group: DeviceGroup, host: HostMeter, limits: Limits, emit: Emit,
        log_path: Path,
    ) -> None:  # fmt: skip
        self.spec = spec
        self.budgets: Sequence[DeviceBudget] = ()
        """Their hard limits are watched; tenants may change the budgets between two probes."""
        self.held: list[Held] = []
        """What each rank's allocator holds after its last answer."""
        self._limits = limits
        self._emit = emit
        self._ticks = 0
        self._workers = WorkerGroup[FromProbe](
            worker_command("autotune.tuning.probe_worker", spec.world_size),
            messages=FromProbe,
            environment=worker_environment(group.kind, spec.world_size),
            log_path=log_path,
            host=host,
        )
        self.sampler = MemorySampler(group, host, self._workers)
        self._stack = ExitStack()
        self._stack.callback(self._workers.close)

    def build(self, capacity: int | None) -> dict[str, Any]:
        """Builds the workload in every rank and returns its `workload_info`; raises WorkersEnded."""
        settings = {**self.spec.settings, "memory_limit": capacity}
        self._stack.enter_context(self.sampler)
        build = Build(workload=self.spec.path, settings=settings)
        ready = self._collect(messages.Ready, Watchdog(longest=self._limits.building), build)
        self.held = [answer.held for answer in ready]
        return ready[0].workload_info

    def ask(self, request: Request, kind: type[A], silence: float) -> list[A]:
        """Every rank's answer of that class, in the order of the ranks; raises WorkersEnded.

        The workers count as hung after `silence` seconds without a message.
        """
        self.sampler.reset()
        self._workers.send(request)
        watchdog = Watchdog(longest=silence, idle=self._limits.idle, cpu_seconds=self._cpu_seconds)
        answers = self._collect(kind, watchdog)
        self.sampler.sample()  # a quick probe may end before the thread's next reading
        return answers

    def host_peak(self) -> int:
        """Highest host memory of the workers since the last request, shared pages counted once."""
        shared = sum(resident(pid) - proportional(pid) for pid in self._workers.pids.values())
        return self.sampler.window().workers_highest - shared

    def close(self) -> None:
        """Ends the workers and the meter."""
        self._stack.close()

    def _collect(self, kind: type[A], watchdog: Watchdog, greeting: Build | None = None) -> list[A]:
        answers: dict[int, A] = {}
        for received in self._workers.watch(TICK, greeting):
            failures = [(rank, said) for rank, said in received if isinstance(said, Failed)]
            if failures:
                first = min(failures, key=lambda pair: list(Cause).index(pair[1].cause))
                raise self._failure(*first)
            answers |= {rank: said for rank, said in received if isinstance(said, kind)}
            if len(answers) == self.spec.world_size:
                return [answers[rank] for rank in sorted(answers)]
            self._watch()
            if (hang := watchdog.check(bool(received))) is not None:
                raise WorkersEnded(hang)
        raise WorkersEnded(self._workers.how_it_ended())

    def _watch(self) -> None:
        """Reads the meters; raises WorkersEnded when a probe must be stopped."""
        window = self.sampler.window()
        if self._ticks % SHOW_EVERY == 0:
            self._emit(window.latest)
        self._ticks += 1
        if (breach := host_breach(window.host_tightest, self._limits.target_ram)) is not None:
            raise WorkersEnded(breach)
        if (past := device_breach(self.budgets, window.highest)) is not None:
            device, failure = past
            if len(self.budgets) == self.spec.world_size:
                failure = replace(failure, rank=device)
            raise WorkersEnded(failure)

    def _failure(self, rank: int, failed: Failed) -> WorkersEnded:
        if failed.cause is Cause.CRASHED and self.spec.world_size > 1:
            # when one rank is gone, the others crash in the collective
            failure = self._workers.how_it_ended()
            if self._workers.lost_a_rank or failure.cause in (Cause.HOST_OOM, Cause.KILLED):
                return WorkersEnded(failure)
        failure = Failure(cause=failed.cause, detail=failed.text, hint=failed.hint, rank=rank)
        return WorkersEnded(failure)

    def _cpu_seconds(self) -> float:
        return cpu_seconds_of_families(list(self._workers.pids.values()))  # loaders work for them
