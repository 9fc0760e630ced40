"""What a profile holds besides the size: the evaluation batch and the number of loader processes."""

import os
from collections.abc import Callable

from autotune.devices.shared_memory import free_shared_memory, suffices
from autotune.trial import Trial, choose, reevaluate, with_margins
from autotune.tuning.loop import rebuild_search
from autotune.tuning.prober import DataWait, WorkerProber

GROWTH = 4
"""An evaluation batch of more micro-batches than this gains no speed."""
PROBES = 3

MIN_WAIT_SHARE = 0.02
"""A shorter wait, as a share of the step, is not worth a process."""
TRIED = (1, 2, 4, 8)


def tune_evaluation(prober: WorkerProber, trained: Trial) -> int:
    """The smallest batch that evaluates as fast as any, of those that hold the target.

    It is at least the smallest micro-batch, which training has run forward and backward.
    """
    least = min(trained.sizes)
    trials: list[Trial] = []
    for _ in range(PROBES):
        size = rebuild_search(prober, trials, GROWTH * least, 2 * least).ask()
        if size is None:
            break
        trials.append(prober.probe(size, "evaluate"))
    budgets = with_margins(prober.budgets, trials)
    known = (reevaluate(trial, budgets) for trial in trials)
    fastest = choose(filter(None, known), "throughput")
    return least if fastest is None else max(least, fastest.size)


def tune_loaders(
    prober: WorkerProber, size: int, *, busy: float, ranks: int, room: int
) -> int | None:
    """Loader processes per rank for steps of `busy` seconds; None when it could not be measured.

    `room` is the host memory that they may take, bytes. A loader that finds shared memory full dies
    of a bus error, so none is tried where it is short.
    """
    cores = len(os.sched_getaffinity(0)) // ranks
    free = free_shared_memory()

    def measure(loaders: int) -> DataWait | None:
        if not suffices(free, loaders * ranks):
            return None
        return prober.data_wait(size, loaders=loaders, busy=busy)

    return fewest(measure, busy=busy, most=cores - 1, room=room)


def fewest(
    measure: Callable[[int], DataWait | None], *, busy: float, most: int, room: int
) -> int | None:
    """The fewest loaders after which more do not shorten the wait enough, within `most` and `room`."""
    alone = measure(0)
    if alone is None:
        return None
    best, waits = 0, alone.seconds
    for loaders in TRIED:
        if waits <= MIN_WAIT_SHARE * busy or loaders > most:
            break
        wait = measure(loaders)
        if wait is None or wait.host_peak > room:
            break
        if wait.seconds < waits - MIN_WAIT_SHARE * busy:
            best, waits = loaders, wait.seconds
    return best
