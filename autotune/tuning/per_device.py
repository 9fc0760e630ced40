"""One micro-batch for each rank, for unequal cards: one search per rank, probed together.

Ranks exchange gradients, so all of them take part in every probe: a rank whose search is over runs
its answer again. The answer is a tuple of sizes that ran together.
"""

from collections.abc import Sequence
from dataclasses import replace

from autotune.readings import DeviceBudget
from autotune.search import Search
from autotune.trial import Trial, reevaluate
from autotune.verdict import Verdict

Sizes = tuple[int, ...]


def ask_each(
    trials: Sequence[Trial],
    budgets: Sequence[DeviceBudget],
    blank: Search,
    *,
    most: int | None,
    guess: Sizes | None = None,
) -> Sizes | None:
    """The sizes to probe next, one a rank, in sum at most `most`; None when the search is over.

    `blank` is a search with the ceiling and the noise; each rank has its own budget.
    """
    guesses = guess if guess is not None and len(guess) == len(budgets) else (None,) * len(budgets)
    known = [t for trial in trials if (t := reevaluate(trial, budgets)) is not None]
    searches = [
        _rank_search(replace(blank, budget=budget.usable, guess=hint), rank, known)
        for rank, (budget, hint) in enumerate(zip(budgets, guesses, strict=True))
    ]
    asked = [search.ask() for search in searches]
    answers = [search.answer for search in searches]
    if any(size is None and best is None for size, best in zip(asked, answers, strict=True)):
        return None  # a rank does not hold even one sequence
    sizes = tuple(size or best or 1 for size, best in zip(asked, answers, strict=True))
    if most is not None and sum(sizes) > most >= len(sizes):
        spare, wanted = most - len(sizes), sum(sizes) - len(sizes)  # each rank has one
        sizes = tuple(1 + (size - 1) * spare // wanted for size in sizes)
    ran_together = {trial.sizes for trial in known}
    return None if sizes in ran_together else sizes  # the same probe again tells nothing new


def _rank_search(search: Search, rank: int, trials: Sequence[Trial]) -> Search:
    """The search of one rank after these trials; of two trials at one size the worse counts."""
    outcomes: dict[int, Search] = {}
    for trial in trials:
        size = trial.sizes[rank]
        told = _tell(search, rank, size, trial)
        before = outcomes.get(size)
        if told is not None and (before is None or before.answer is not None):
            outcomes[size] = told
    return replace(search, observations=tuple(told.observations[-1] for told in outcomes.values()))


def _tell(search: Search, rank: int, size: int, trial: Trial) -> Search | None:
    """The search after what the trial says of this rank; None when another rank ended the trial."""
    if trial.measured and trial.failure is None:
        device = trial.measured[rank]
        verdict = Verdict.FITS if device.peak <= trial.budgets[rank].usable else Verdict.OVER
        return search.tell(size, verdict, device.peak, device.static_bytes, device.activation_peak)
    if trial.failed_rank not in (None, rank):
        return None
    return search.tell(size, trial.verdict)
