"""One group of workers and the talk with it: a question to all ranks, and the answers or the end.

Whatever ends it is an `WorkersEnded` of one kind, which says nothing yet about a size: that is `prober`'s.

    over       the guard stopped it, or an allocation failed at the guard's limit
    oom        out of memory: an allocation was refused, or the kernel killed a process
    killed     SIGKILL without a trace of the kernel's OOM killer
    crash      an exception; `died`: gone without a word; `hung`: alive, and doing nothing
    refused    what the workload says that the user can mend
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autotune.cause import Cause, Failure
from autotune.devices.budget import device_breach, host_breach
from autotune.devices.group import DeviceGroup
from autotune.devices.host import HostMeter
from autotune.devices.processes import cpu_seconds_of_families, proportional, resident
from autotune.devices.sampler import MemorySampler
from autotune.events import Emit, ReadingTaken
from autotune.readings import Held
from autotune.trial import DeviceBudget
from autotune.workers.channel import Message
from autotune.workers.group import WorkerGroup
from autotune.workers.launch import memory_environment, worker_command, worker_environment
from autotune.workers.watchdog import Watchdog

TICK = 0.05
"""Seconds between two looks at the meters."""
SHOW_EVERY = 4
"""Looks that a reading is emitted once in."""
CAUSES = {"oom": Cause.DEVICE_OOM, "refused": Cause.REFUSED, "crash": Cause.CRASHED}
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
    idle: float = 10.0
    """Seconds in a probe without a word or any work of the processors, which count as hung too."""


class WorkersEnded(Exception):
    """The workers' end, before they had all answered."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure


class Session:
    """Workers that build a workload and then answer about it; `close` it whatever happens."""

    def __init__(
        self, spec: WorkloadSpec, *, group: DeviceGroup, host: HostMeter, limits: Limits, emit: Emit,
        log_path: Path,
    ) -> None:  # fmt: skip
        self.spec = spec
        self.budgets: Sequence[DeviceBudget] = ()
        """What the guard watches; neighbours may change it between two probes."""
        self.held: list[Held] = []
        """By rank, since its last answer."""
        self._limits = limits
        self._emit = emit
        self._ticks = 0
        self._workers = WorkerGroup(
            worker_command("autotune.tuning.probe_worker", spec.world_size),
            environment=worker_environment(memory_environment(group.kind), spec.world_size),
            log_path=log_path,
            host=host,
        )
        self.sampler = MemorySampler(group, host, self._workers.resident)

    def build(self, capacity: int | None) -> dict[str, Any]:
        """The facts of the workload, built in every rank; raises Ended."""
        settings = {**self.spec.settings, "memory_limit": capacity}
        request = {"type": "build", "workload": self.spec.path, "settings": settings}
        ready: dict[int, Message] = {}

        def take(message: Message) -> bool:
            if message["type"] == "hello" and message["present"] == self.spec.world_size:
                self._workers.send(request)
            if message["type"] == "ready":
                ready[message["rank"]] = message
            return len(ready) == self.spec.world_size

        self.sampler.__enter__()
        self._wait(take, Watchdog(longest=self._limits.building))
        self.held = [Held(**ready[rank]["held"]) for rank in sorted(ready)]
        workload_info: dict[str, Any] = ready[0]["facts"]
        return workload_info

    def ask(self, request: Mapping[str, Any], silence: float) -> list[dict[str, Any]]:
        """Every rank's report, in the order of the ranks, `silence` seconds apart at most.

        Raises Ended.
        """
        self.sampler.reset()
        reports: dict[int, dict[str, Any]] = {}

        def take(message: Message) -> bool:
            if message["type"] == "report":
                reports[message["rank"]] = message["report"]
            return len(reports) == self.spec.world_size

        self._workers.send(request)
        watchdog = Watchdog(longest=silence, idle=self._limits.idle, cpu_seconds=self._cpu_seconds)
        self._wait(take, watchdog)
        self.sampler.sample()  # a quick probe has ended before the thread's next reading
        return [reports[rank] for rank in sorted(reports)]

    def host_peak(self) -> int:
        """Highest host memory of the workers since the last request, shared pages counted once."""
        shared = sum(resident(pid) - proportional(pid) for pid in self._workers.pids.values())
        return self.sampler.window().workers_highest - shared

    def close(self) -> None:
        """Ends the workers and the meter."""
        self.sampler.__exit__(None, None, None)
        self._workers.close()

    def _wait(self, take: Callable[[Message], bool], watchdog: Watchdog) -> None:
        """Reads messages and meters until `take` returns True; raises WorkersEnded."""
        for messages in self._workers.watch(TICK):
            failures = [message for message in messages if message["type"] in CAUSES]
            if failures:
                raise self._failure(min(failures, key=lambda m: [*CAUSES].index(m["type"])))
            for message in messages:
                if take(message):
                    return
            self._watch()
            if (why := watchdog.check(bool(messages))) is not None:
                raise WorkersEnded(Failure(cause=Cause.HUNG, detail=why))
        raise WorkersEnded(self._workers.how_it_ended())

    def _watch(self) -> None:
        """Looks at the meters; raises Ended where the guard must stop the probe."""
        window = self.sampler.window()
        if self._ticks % SHOW_EVERY == 0:
            self._emit(
                ReadingTaken(devices=window.devices, host=window.host, workers=window.workers)
            )
        self._ticks += 1
        if (breach := host_breach(window.host_tightest, self._limits.target_ram)) is not None:
            raise WorkersEnded(breach)
        if (past := device_breach(self.budgets, window.highest)) is not None:
            device, failure = past
            if len(self.budgets) == self.spec.world_size:
                failure = replace(failure, rank=device)
            raise WorkersEnded(failure)

    def _failure(self, message: Message) -> WorkersEnded:
        if message["type"] == "crash" and self.spec.world_size > 1:
            # when one rank is gone, the others crash in the collective
            failure = self._workers.how_it_ended()
            if self._workers.lost_a_rank or failure.cause in (Cause.HOST_OOM, Cause.KILLED):
                return WorkersEnded(failure)
        return WorkersEnded(
            Failure(cause=CAUSES[message["type"]], detail=message["text"], rank=message["rank"])
        )

    def _cpu_seconds(self) -> float:
        return cpu_seconds_of_families(list(self._workers.pids.values()))  # loaders work for them
