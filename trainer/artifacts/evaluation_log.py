"""What is kept of evaluations: `evaluations.jsonl`, one object each, and when to stop for want of progress.

It knows files and figures, no tensors; a resumed run reads here what its earlier part had found.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from autotune.units import finite
from trainer.events import Evaluated, Sample


def evaluation_record(event: Evaluated) -> dict[str, Any]:
    """The promised keys: those of the event, and the perplexity."""
    values = asdict(event)
    head = {"step": values.pop("step"), "loss": values.pop("loss")}
    perplexity = math.exp(min(event.loss, 700.0))  # of more, a double has no exponential
    return finite({**head, "perplexity": perplexity, **values})


def evaluation_from_record(record: Mapping[str, Any]) -> Evaluated:
    """The event of that record."""
    values = {key: value for key, value in record.items() if key != "perplexity"}
    samples = tuple(Sample(**sample) for sample in values.pop("samples"))
    loss = math.nan if values["loss"] is None else values["loss"]
    return Evaluated(**{**values, "loss": loss, "samples": samples})


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
        """Of what `evaluations.jsonl` holds, where a loss that was no number is null."""
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
        """The first of the lowest; None before any, and where every loss was beyond numbers."""
        known = [pair for pair in self.losses if math.isfinite(pair[1])]
        if not known:
            return None
        step, loss = min(known, key=lambda pair: pair[1])
        return Best(step=step, loss=loss)

    @property
    def since_best(self) -> int:
        """Evaluations in a row that were no better than one before them: any lower loss is."""
        if self.best is None:
            return max(0, len(self.losses) - 1)
        return len(self.losses) - 1 - self.losses.index((self.best.step, self.best.loss))

    def early_stop_text(self, step: int, steps: int) -> str:
        """Why a run ends early, and what it leaves."""
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
