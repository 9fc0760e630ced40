"""The engine: ask, probe, tell, until the bracket is closed. It draws nothing and writes nothing."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autotune.events import Emit, Notice, ProbeEnded, ProbeStarted, TuningEnded, TuningStarted
from autotune.prober import Prober
from autotune.search import Search
from autotune.trial import Trial
from autotune.verdict import Verdict

WORTH = 0.97
"""`--prefer throughput` takes the smallest size within 3 % of the best speed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a tuning found; `answer` is None when nothing fitted or nothing had been probed."""

    answer: Trial | None
    trials: tuple[Trial, ...]
    facts: dict[str, Any]
    ceiling: int
    interrupted: bool
    seconds: float


def tune(
    prober: Prober,
    *,
    ceiling: Callable[[dict[str, Any]], int],
    prefer: str = "memory",
    emit: Emit,
) -> Outcome:
    """Searches the largest size that holds the target; Ctrl-C ends it with the best so far.

    `ceiling` turns the workload's facts into the largest size worth trying.

    Raises:
        ChatlmError: the workload was refused, or its workers fail for another reason than memory.
    """
    started = time.monotonic()
    facts = prober.open()
    top = ceiling(facts)
    if facts.get("notice"):
        emit(Notice(text=facts["notice"]))
    budgets = prober.budgets
    search = Search(top, min(budget.budget for budget in budgets))
    emit(
        TuningStarted(
            model=facts["model"], target=prober.limits.target, ceiling=top, devices=budgets
        )
    )
    trials: list[Trial] = []
    interrupted = False
    try:
        while (size := search.ask()) is not None:
            emit(ProbeStarted(size=size, low=search.low, high=search.high))
            trial = prober.probe(size)
            trials.append(trial)
            search = tell(search, trial)
            emit(ProbeEnded(trial=trial, low=search.low, high=search.high))
    except KeyboardInterrupt:
        interrupted = True
        emit(Notice(text="interrupted; keeping the best so far"))
    answer = choose(trials, prefer)
    seconds = time.monotonic() - started
    emit(
        TuningEnded(
            answer=None if answer is None else answer.size, interrupted=interrupted, seconds=seconds
        )
    )
    return Outcome(
        answer=answer,
        trials=tuple(trials),
        facts=facts,
        ceiling=top,
        interrupted=interrupted,
        seconds=seconds,
    )


def tell(search: Search, trial: Trial) -> Search:
    """The search that knows the trial, as if all devices had the search's one budget.

    Only headroom matters; a device with a larger budget is shifted down to the smallest one.
    """
    shift = search.budget - trial.budgets[trial.tightest].budget

    def shifted(amount: int | None) -> int | None:
        return None if amount is None else amount + shift

    return search.tell(
        trial.size,
        trial.verdict,
        peak=shifted(trial.peak),
        fixed=shifted(trial.fixed),
        growing=shifted(trial.growing),
    )


def choose(trials: list[Trial], prefer: str) -> Trial | None:
    """The trial to train with: the largest that fits, or the smallest that is as fast as any."""
    fits = sorted((t for t in trials if t.verdict is Verdict.FITS), key=lambda t: t.size)
    if not fits or prefer == "memory":
        return fits[-1] if fits else None
    best = max(trial.samples_per_second or 0.0 for trial in fits)
    return next(t for t in fits if (t.samples_per_second or 0.0) >= WORTH * best)
