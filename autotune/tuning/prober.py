"""Runs probes in worker processes and turns each end into a trial.

One group of workers serves many sizes. It is replaced after every probe that failed, and when it holds more
memory between two probes than before its first. How a probe ends:

    report                      FITS or OVER, by the peak that `devices.group` forms
    HARD_LIMIT, HOST_TARGET     OVER
    DEVICE_OOM, HOST_OOM        OOM
    KILLED                      tried once more, then OOM
    CRASHED                     tried once more; then OOM by SIZE_LIMIT where a smaller size ran, else an error
    DIED, HUNG                  tried once more, then a WorkerError: they say nothing about memory

A probe during which a tenant took or freed memory is measured again, under the new budget.
"""

import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, Self

from autotune.cause import FOR_MEMORY, Cause, Failure
from autotune.devices.budget import over_host_target
from autotune.devices.group import DeviceGroup
from autotune.devices.host import HostMeter
from autotune.devices.tenants import Tenants, device_of
from autotune.errors import ChatlmError, NothingFits, WorkerError
from autotune.events import Emit, Notice
from autotune.readings import DeviceBudget, Report
from autotune.trial import Trial, measured_trial
from autotune.verdict import Verdict
from autotune.workers.messages import (
    DataWait,
    MeasureDataWait,
    MeasureMemoryFractions,
    MemoryFractions,
    Phase,
    Probe,
)
from autotune.workers.session import Limits, Session, WorkersEnded, WorkloadSpec
from autotune.workers.watchdog import silence_limit

__all__ = ["DataWait", "Limits", "WorkerProber", "WorkloadSpec"]

MAX_DISTURBED = 2
"""How often a probe is measured again because of a tenant."""
DRIFT = 1.01
"""Workers are replaced when they hold this factor of what they held before their first probe."""
SAFE_SHARE = 0.75
"""Below this share of the budget a peak need not settle."""
MIN_PROBE_TIMEOUT = 60.0
"""Seconds before any probe can count as hung."""


@dataclass(eq=False)
class WorkerProber:
    """Probes one size after another; `with` ends its workers.

    Budgets are read before the first worker starts, and again before each replacement.
    """

    spec: WorkloadSpec
    _: KW_ONLY
    group: DeviceGroup
    host: HostMeter
    limits: Limits
    emit: Emit
    log_path: Path

    def __post_init__(self) -> None:
        self.target = self.limits.target
        self.noise, self.is_rough = self.group.noise, self.group.is_rough
        self.tenants = Tenants(self.group, self.target, self.emit)
        self._session: Session | None = None
        self._first_static: list[int] = []
        """Bytes by rank before the first probe of these workers."""
        self._drifted = False
        """Whether the next probe needs new workers."""
        self._largest = 0
        """Largest size that ran to its end."""
        self._confirmed: set[Cause] = set()
        """Causes that came twice at one size; other sizes that end so are not tried a second time."""
        self._pace: float | None = None
        """Seconds per sequence in the slowest step of the last probe."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def budgets(self) -> tuple[DeviceBudget, ...]:
        return self.tenants.budgets

    def open(self) -> dict[str, Any]:
        """Starts the workers and returns the info of the workload that they built.

        Raises:
            NothingFits: the model alone is too large.
            ChatlmError: the workload refused its settings or data, or a worker never became ready.
        """
        for attempt in (1, 2):
            try:
                return self._start()
            except WorkersEnded as ended:
                self.close()
                cause = ended.failure.cause
                if cause is Cause.REFUSED:
                    raise ChatlmError(ended.failure.detail, ended.failure.hint) from None
                if cause in FOR_MEMORY:
                    raise NothingFits(
                        f"the model and its optimizer alone do not fit: {ended.failure}",
                        "try a higher target, a smaller model, or a device or --vram-limit with "
                        "more memory",
                    ) from None
                if attempt == 2 or cause is Cause.CRASHED:
                    raise self._error(ended.failure, "while it built the workload") from None
        raise AssertionError("unreachable")

    def probe(self, size: int | Sequence[int], phase: Phase = "train") -> Trial:
        """One trial at that size, or at one size a rank.

        Raises:
            WorkerError: the workers crashed or hung twice.
            DeviceError: the meters do not answer, or tenants took the whole target.
            ChatlmError: the workload refused its settings or data.
        """
        started = time.monotonic()
        sizes = [size] * self.spec.world_size if isinstance(size, int) else list(size)
        failures = disturbed = 0
        if self._drifted:
            self.close()
        while True:
            session = self._ready()
            self.tenants.update_budgets(session.held)
            session.budgets = self.budgets
            try:
                reports = self._ask(session, phase, sizes)
            except WorkersEnded as ended:
                self.close()
                for_memory = ended.failure.cause in FOR_MEMORY
                if disturbed < MAX_DISTURBED and for_memory and self.tenants.changed_since_start():
                    disturbed += 1
                    self._say_disturbed(sizes)
                    continue
                failures += 1
                seconds = time.monotonic() - started
                if (failed := self._failed(sizes, ended.failure, seconds, failures)) is not None:
                    return failed
                continue
            session.held = [report.held for report in reports]
            trial = self._trial(sizes, session, reports, time.monotonic() - started)
            highest = session.sampler.window().highest
            if disturbed < MAX_DISTURBED and self.tenants.was_disturbed(
                session.held, highest, trial.measured
            ):
                disturbed += 1
                self._say_disturbed(sizes)
                continue
            self._drifted = self._has_drifted(reports)
            if phase == "train":
                self._largest = max(self._largest, *sizes)
                self._pace = max(max(r.seconds) / max(1, r.samples) for r in reports)
            return trial

    def data_wait(self, size: int, *, loaders: int, busy: float) -> DataWait | None:
        """The wait of a step of `busy` seconds with `loaders` per rank; None if the workers end."""
        session, ranks = self._ready(), self.spec.world_size
        limits = self.tenants.hard_limits(ranks)
        request = MeasureDataWait(
            sizes=[size] * ranks, hard_limits=limits, loaders=loaders, busy=busy
        )
        try:
            waits = session.ask(request, DataWait, self.limits.silence)
        except WorkersEnded:
            self.close()
            return None
        return DataWait(
            seconds=max(wait.seconds for wait in waits),
            host_peak=sum(wait.host_peak for wait in waits),
        )

    def measure_memory_fractions(self, size: int) -> tuple[float, ...] | None:
        """Each side's highest share of a micro-batch's memory; None if one side, or workers end."""
        session, ranks = self._ready(), self.spec.world_size
        limits = self.tenants.hard_limits(ranks)
        request = MeasureMemoryFractions(sizes=[size] * ranks, hard_limits=limits)
        try:
            answers = session.ask(request, MemoryFractions, self.limits.silence)
        except WorkersEnded:
            self.close()
            return None
        fractions = [answer.fractions for answer in answers if answer.fractions is not None]
        if len(fractions) < len(answers):
            return None
        return tuple(map(max, zip(*fractions, strict=True)))

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _ready(self) -> Session:
        if self._session is None:
            self.open()
        assert self._session is not None
        return self._session

    def _start(self) -> dict[str, Any]:
        baseline = self.tenants.read_baseline()
        self._session = Session(
            self.spec, group=self.group, host=self.host, limits=self.limits, emit=self.emit,
            log_path=self.log_path,
        )  # fmt: skip
        self._session.budgets = self.budgets
        self._first_static, self._drifted = [], False
        workload_info = self._session.build(self.group.memory_cap(baseline))
        self.tenants.set_baseline(self._session.held)
        return workload_info

    def _ask(self, session: Session, phase: Phase, sizes: Sequence[int]) -> list[Report]:
        longest = self.limits.silence
        if self._pace is not None:
            expected = self._pace * max(sizes)
            longest = min(longest, silence_limit(expected, least=MIN_PROBE_TIMEOUT))
        limits = self.tenants.hard_limits(self.spec.world_size)
        safe = [int(SAFE_SHARE * room) for room in self.tenants.headroom(self.spec.world_size)]
        request = Probe(phase=phase, sizes=sizes, hard_limits=limits, safe=safe)
        return session.ask(request, Report, longest)

    def _say_disturbed(self, sizes: Sequence[int]) -> None:
        text = f"probe {max(sizes)}: a tenant's memory changed meanwhile; measuring again"
        self.emit(Notice(text=text))

    def _has_drifted(self, reports: Sequence[Report]) -> bool:
        """Whether a worker holds more between probes than before its first."""
        static = [report.static_bytes for report in reports]
        self._first_static = self._first_static or static
        return any(
            now > DRIFT * first for now, first in zip(static, self._first_static, strict=True)
        )

    def _trial(
        self, sizes: Sequence[int], session: Session, reports: Sequence[Report], seconds: float
    ) -> Trial:
        window = session.sampler.window()
        measured = self.group.measure(reports, self.budgets, window.highest)
        trial = measured_trial(
            sizes, reports, measured, self.budgets, seconds=seconds, host_peak=session.host_peak()
        )
        host = window.host_tightest
        if trial.verdict is Verdict.FITS and host.used > self.limits.target_ram * host.total:
            failure = over_host_target(host, self.limits.target_ram)
            return replace(trial, verdict=Verdict.OVER, failure=failure)
        return trial

    def _failed(
        self, sizes: Sequence[int], failure: Failure, seconds: float, failures: int
    ) -> Trial | None:
        """The trial of a probe that failed, or None when it is to be tried once more.

        Raises:
            ChatlmError: it failed for another reason than its size.
        """
        size, cause = max(sizes), failure.cause
        device = device_of(failure.rank or 0, self.spec.world_size, self.budgets)
        verdict = Verdict.OOM
        match cause:
            case Cause.REFUSED:
                raise ChatlmError(failure.detail, failure.hint)
            case Cause.HARD_LIMIT | Cause.HOST_TARGET:
                verdict = Verdict.OVER
            case Cause.DEVICE_OOM if failure.rank is not None and self.budgets[device].stops_early:
                verdict, failure = Verdict.OVER, replace(failure, cause=Cause.HARD_LIMIT)
            case Cause.DEVICE_OOM | Cause.HOST_OOM:
                pass
            case _ if failures == 1 and cause not in self._confirmed:
                text = f"probe {size}: the worker {_as_clause(failure)}; trying once more"
                self.emit(Notice(text=text))
                return None
            case Cause.KILLED:
                self._confirmed.add(cause)
            case Cause.CRASHED if size > self._largest > 0:
                self._confirmed.add(cause)
                failure = replace(failure, cause=Cause.SIZE_LIMIT)
            case _:
                raise self._error(failure, f"at micro-batch {size}, twice")
        return Trial(
            size=size,
            sizes=tuple(sizes),
            verdict=verdict,
            peak=None,
            seconds=seconds,
            budgets=self.budgets,
            tightest=device,
            failure=failure,
        )

    def _error(self, failure: Failure, when: str) -> WorkerError:
        what = f"the worker {_as_clause(failure)} {when}"
        return WorkerError(what, f"its log is {self.log_path}")


def _as_clause(failure: Failure) -> str:
    is_crash = failure.cause is Cause.CRASHED
    return f"crashed ({failure.first_line})" if is_crash else failure.detail
