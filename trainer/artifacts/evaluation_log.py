"""Evaluations as records of `evaluations.jsonl`, and when to stop early; a resume reads them."""

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
        losses = ((r["step"], math.inf if r["loss"] is None else r["loss"]) for r in records)
        return cls(losses=tuple(losses))

    def then(self, step: int, loss: float) -> Self:
        known = loss if math.isfinite(loss) else math.inf
        return replace(self, losses=(*self.losses, (step, known)))

    @property
    def best(self) -> Best | None:
        """The first evaluation with the lowest loss; None without a finite loss."""
        step, loss = min(self.losses, key=lambda pair: pair[1], default=(0, math.inf))
        return Best(step=step, loss=loss) if math.isfinite(loss) else None

    @property
    def since_best(self) -> int:
        """Evaluations since the best one."""
        if self.best is None:
            return max(0, len(self.losses) - 1)
        return len(self.losses) - 1 - self.losses.index((self.best.step, self.best.loss))

    def early_stop_text(self, step: int, steps: int) -> str:
        """Why the run ends early, and which model it leaves."""
        text = (
            f"stopped at step {step} of {steps}, after {self.since_best} evaluation(s) without a lower "
            f"loss; the model is this step's"
        )
        if (best := self.best) is None:
            return text
        return f"{text}, the lowest evaluation loss was {best.loss:.3f} at step {best.step}"
