"""The tuning loop: ask, probe, tell, until no probe is worth it. It draws and writes nothing."""

import functools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from autotune.cause import Cause
from autotune.choices import Prefer
from autotune.errors import ChatlmError, NothingFits
from autotune.events import Emit, Notice, ProbeEnded, ProbeStarted, TuningEnded, TuningStarted
from autotune.readings import DeviceBudget
from autotune.search import Search, knee
from autotune.trial import Trial, choose, fitting, reevaluate, steadiest, undecided, with_margins
from autotune.tuning.per_device import Sizes, ask_each
from autotune.units import format_bytes

CLOSE = 1.25
"""No size is timed between two whose ratio is at most this."""
EVEN = 0.85
"""Budgets count as equal when the smallest is at least this share of the largest."""
SPEED_PROBES = 2
"""Probes for the speed alone, after the search for the largest size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What a profile holds besides the size; None where it was not measured."""

    eval_batch: int | None = None
    """Sequences per device per forward pass in evaluation."""
    loaders: int | None = None
    """Loader processes per training process."""
    memory_fractions: tuple[float, ...] | None = None
    """What source and target each take of a micro-batch's memory, where they are padded apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a tuning found; `answer` is None when nothing fitted or nothing had been probed."""

    answer: Trial | None
    trials: tuple[Trial, ...]
    workload_info: dict[str, Any]
    interrupted: bool
    seconds: float
    extras: Extras

    def nothing_fits(self, hint: str, host_hint: str) -> NothingFits:
        """The error for a tuning in which not even one sequence per device holds the targets.

        `host_hint` is the advice where host memory decided.
        """
        trial = min(self.trials, key=lambda t: t.size)
        if trial.failure is not None and trial.failure.cause in (Cause.HOST_TARGET, Cause.HOST_OOM):
            return NothingFits(f"nothing fits: micro-batch {trial.size}: {trial.reason}", host_hint)
        budget = trial.budgets[trial.tightest]
        peak = "ran out of memory" if trial.peak is None else f"peaks at {format_bytes(trial.peak)}"
        if trial.static_bytes is not None:
            peak += f", {format_bytes(trial.static_bytes)} held before the step"
        reason = f" ({trial.reason})" if trial.reason else ""
        return NothingFits(
            f"nothing fits: micro-batch {trial.size} {peak}{reason}, and the budget of {budget.name} is "
            f"{format_bytes(budget.budget)}, with {format_bytes(budget.others)} of "
            f"{format_bytes(budget.total)} held by others",
            hint,
        )


class Prober(Protocol):
    """What the loop asks: a size goes in, a trial comes out."""

    @property
    def target(self) -> float:
        """The share of each device to hold."""

    @property
    def noise(self) -> float:
        """How far apart two peaks of one size lie, as a share."""

    @property
    def is_rough(self) -> bool:
        """Whether memory follows no line, since kernels change with the size."""

    @property
    def budgets(self) -> tuple[DeviceBudget, ...]:
        """What the devices allow now: tenants may move between two probes."""

    def open(self) -> dict[str, Any]:
        """Builds the workload and returns its info, which includes `model`."""

    def probe(self, size: int | Sizes) -> Trial:
        """One trial at that size, or at one size a rank."""


def tune(
    prober: Prober,
    *,
    ceiling: Callable[[dict[str, Any]], int],
    prefer: Prefer = "memory",
    guess: Callable[[dict[str, Any]], Sizes | None] = lambda workload_info: None,
    per_device: bool = False,
    most: int | None = None,
    divides: int | None = None,
    after: Callable[[Trial], Extras] | None = None,
    emit: Emit,
) -> Outcome:
    """Searches for the largest size that holds the target; Ctrl-C ends it with the best so far.

    `ceiling` maps the workload's info to the largest size to try, `guess` to the sizes of an earlier
    tuning. `per_device` searches a size for each rank; `most` bounds their sum. `divides` tries only
    sizes that divide it. `after` measures the extras of the answer; if it fails there are none.

    Raises:
        ChatlmError: the workload was refused, or its workers fail for another reason than memory.
    """
    started = time.monotonic()
    info = prober.open()
    top, hint = ceiling(info), guess(info)
    if info.get("notice"):
        emit(Notice(text=info["notice"]))
    model, devices = info["model"], prober.budgets
    emit(TuningStarted(model=model, target=prober.target, ceiling=top, devices=devices))
    if not per_device and (hint_text := uneven(devices)) is not None:
        emit(Notice(text=hint_text))
    trials: list[Trial] = []
    interrupted = False
    extras = Extras()

    def ask() -> int | Sizes | None:
        if per_device:
            now = with_margins(prober.budgets, trials)
            blank = Search(top, 0, noise=prober.noise, is_rough=prober.is_rough)
            return ask_each(trials, now, blank, most=most, guess=hint)
        one = None if hint is None else min(hint)
        return dividing(rebuild_search(prober, trials, top, one), divides)

    try:
        while (size := ask()) is not None:
            trials = probed(prober, size, trials, top, emit)
        for _ in range(SPEED_PROBES if prefer == "throughput" and not per_device else 0):
            if (timed := next_for_speed(trials)) is None:
                break
            trials = probed(prober, timed, trials, top, emit)
        if (answer := choose(trials, prefer)) is not None and after is not None:
            try:
                extras = after(answer)
            except ChatlmError as error:  # the answer stays
                emit(Notice(text=f"evaluation and loaders stay as they were: {error}"))
    except KeyboardInterrupt:
        interrupted = True
        emit(Notice(text="interrupted; keeping the best so far"))
    answer = choose(trials, prefer)
    seconds = time.monotonic() - started
    size = None if answer is None else answer.size
    emit(TuningEnded(answer=size, interrupted=interrupted, seconds=seconds))
    return Outcome(
        answer=answer,
        trials=tuple(trials),
        workload_info=info,
        interrupted=interrupted,
        seconds=seconds,
        extras=extras,
    )


def probed(
    prober: Prober, size: int | Sizes, trials: Sequence[Trial], ceiling: int, emit: Emit
) -> list[Trial]:
    """The trials and one more, all with verdicts under the budgets of now."""
    search = rebuild_search(prober, trials, ceiling)
    largest = size if isinstance(size, int) else max(size)
    emit(ProbeStarted(size=largest, low=search.low, high=search.high))
    trial = prober.probe(size)
    budgets = with_margins(prober.budgets, (*trials, trial))
    known = [reevaluate(t, budgets) or t for t in (*trials, trial)]
    search = rebuild_search(prober, known, ceiling)
    emit(ProbeEnded(trial=known[-1], low=search.low, high=search.high))
    return known


def rebuild_search(
    prober: Prober, trials: Iterable[Trial], ceiling: int, guess: int | None = None
) -> Search:
    """The search after these trials, under the budgets of now: tenants may have moved since."""
    trials = tuple(trials)
    budgets = with_margins(prober.budgets, trials)
    least = min(budget.usable for budget in budgets)
    search = Search(ceiling, least, guess, noise=prober.noise, is_rough=prober.is_rough)
    known = (reevaluate(trial, budgets) for trial in trials)
    return functools.reduce(tell, filter(None, known), search)


def dividing(search: Search, whole: int | None) -> int | None:
    """The size that the search asks for, or the nearest that divides, first below, then above."""
    asked = search.ask()
    if asked is None or whole is None:
        return asked
    inside = [size for size in range(search.low + 1, search.high) if whole % size == 0]
    return max((size for size in inside if size <= asked), default=min(inside, default=None))


def tell(search: Search, trial: Trial) -> Search:
    """The search after this trial.

    The search has one budget, the smallest. A trial whose tightest device has a larger one is
    shifted down by the difference, which keeps its headroom.
    """
    shift = search.budget - trial.budgets[trial.tightest].usable
    amounts = trial.peak, trial.static_bytes, trial.activation_peak
    shifted = (None if amount is None else amount + shift for amount in amounts)
    return search.tell(trial.size, trial.verdict, *shifted)


def uneven(budgets: Sequence[DeviceBudget]) -> str | None:
    """A hint if one device allows much less than another and so limits all; else None."""
    least = min(budgets, key=lambda budget: budget.budget)
    most = max(budgets, key=lambda budget: budget.budget)
    if least.budget > EVEN * most.budget:
        return None
    return (
        f"{least.name} allows {format_bytes(least.budget)} and {most.name} "
        f"{format_bytes(most.budget)}: the smaller one decides, unless you give --per-device"
    )


def next_for_speed(trials: Sequence[Trial]) -> int | None:
    """A size whose speed is worth a probe: one to measure again, or a new one; None when it is decided."""
    again = undecided(trials)
    return beside_the_fastest(trials) if again is None else again


def beside_the_fastest(trials: Sequence[Trial]) -> int | None:
    """A size in the wider gap beside the fastest: below the knee, or above; None when both are narrow.

    Speeds saturate, but some fall and rise again, so the fastest may lie on either side.
    """
    speeds = {t.size: t.samples_per_second or 0.0 for t in steadiest(fitting(trials)).values()}
    if not speeds:
        return None
    smallest, fastest = knee(speeds), max(speeds, key=lambda size: speeds[size])
    smaller = max((size for size in speeds if size < smallest), default=smallest)
    larger = min((size for size in speeds if size > fastest), default=fastest)
    low, high = max(((smaller, smallest), (fastest, larger)), key=lambda gap: gap[1] / gap[0])
    return None if high <= CLOSE * low else math.isqrt(high * low)
