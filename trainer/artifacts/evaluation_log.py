"""Evaluations as records of `evaluations.jsonl`, and when to stop early.

Knows no tensors. A resumed run reads its earlier evaluations from here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from autotune.files import finite
from trainer.events import Evaluated


def evaluation_record(event: Evaluated) -> dict[str, Any]:
    """The keys of the event, and the perplexity."""
    values = asdict(event)
    head = {"step": values.pop("step"), "loss": values.pop("loss")}
    perplexity = math.exp(min(event.loss, 700.0))  # exp of more overflows a double
    return finite({**head, "perplexity": perplexity, **values})


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The evaluation with the lowest loss."""

    step: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationHistory:
    """The losses of a run's evaluations, in order."""

    losses: tuple[tuple[int, float], ...] = ()
    """(step, loss); infinite where it was no number."""

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> Self:
        """From the records of `evaluations.jsonl`, where a loss that was no number is null."""
        progress = cls()
        for record in records:
            loss = record["loss"]
            progress = progress.then(record["step"], math.inf if loss is None else loss)
        return progress

    def then(self, step: int, loss: float) -> Self:
        known = loss if math.isfinite(loss) else math.inf
        return replace(self, losses=(*self.losses, (step, known)))

    @property
    def best(self) -> Best | None:
        """The first evaluation with the lowest loss; None without a finite loss."""
        known = [pair for pair in self.losses if math.isfinite(pair[1])]
        if not known:
            return None
        step, loss = min(known, key=lambda pair: pair[1])
        return Best(step=step, loss=loss)

    @property
    def since_best(self) -> int:
        """Evaluations since the best one."""
        if self.best is None:
            return max(0, len(self.losses) - 1)
        return len(self.losses) - 1 - self.losses.index((self.best.step, self.best.loss))

    def early_stop_text(self, step: int, steps: int) -> str:
        """Why the run ends early, and which model it leaves."""
        best = self.best
        lowest = (
            ""
            if best is None
            else (f", the lowest evaluation loss was {best.loss:.3f} at step {best.step}")
        )
        return (
            f"no better evaluation for {self.since_best} in a row: stopped at step {step} of {steps}; "
            f"the model is this step's{lowest}"
        )
