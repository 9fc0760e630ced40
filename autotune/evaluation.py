"""The evaluation batch: the same search, forward alone, beside all that training keeps resident."""

from autotune.prober import Prober
from autotune.search import Search
from autotune.trial import Trial
from autotune.tuning import choose, tell

GROWTH = 4
"""An evaluation batch of more micro-batches than this gains no speed."""
PROBES = 3


def tune_evaluation(prober: Prober, trained: Trial) -> int:
    """The smallest batch that evaluates as fast as any, of those that hold the target.

    What training runs forward and backward fits forward alone: the micro-batch is the least.
    """
    ceiling = GROWTH * trained.size
    guess = min(2 * trained.size, ceiling)
    trials: list[Trial] = []
    for _ in range(PROBES):
        search = Search(ceiling, min(budget.budget for budget in prober.budgets), guess)
        for trial in trials:
            search = tell(search, trial)
        size = search.ask()
        if size is None:
            break
        trials.append(prober.probe(size, "evaluate"))
    fastest = choose(trials, "throughput")
    return trained.size if fastest is None else max(trained.size, fastest.size)
