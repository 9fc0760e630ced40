"""The evaluation batch: the same search, forward alone, beside all that training keeps resident."""

from autotune.trial import Trial
from autotune.tuning.loop import choose, rebuild_search
from autotune.tuning.prober import Prober

GROWTH = 4
"""An evaluation batch of more micro-batches than this gains no speed."""
PROBES = 3


def tune_evaluation(prober: Prober, trained: Trial) -> int:
    """The smallest batch that evaluates as fast as any, of those that hold the target.

    What training runs forward and backward fits forward alone: the micro-batch is the least, of
    unequal ones the smallest.
    """
    least = min(trained.sizes)
    trials: list[Trial] = []
    for _ in range(PROBES):
        size = rebuild_search(
            trials,
            prober.budgets,
            GROWTH * least,
            noise=prober.group.noise,
            guess=2 * least,
        ).ask()
        if size is None:
            break
        trials.append(prober.probe(size, "evaluate"))
    fastest = choose(trials, "throughput")
    return least if fastest is None else max(least, fastest.size)
