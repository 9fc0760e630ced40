"""What is kept of evaluations: `evaluations.jsonl`, one object each, and when to stop for want of progress.

It knows files and figures, no tensors; a resumed run reads here what its earlier part had found.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from autotune.quantity import finite
from trainer.events import Evaluated, Sample


def as_record(event: Evaluated) -> dict[str, Any]:
    """The promised keys: those of the event, and the perplexity."""
    values = asdict(event)
    head = {"step": values.pop("step"), "loss": values.pop("loss")}
    perplexity = math.exp(min(event.loss, 700.0))  # of more, a double has no exponential
    return finite({**head, "perplexity": perplexity, **values})


def evaluated(record: Mapping[str, Any]) -> Evaluated:
    """The event of that record."""
    values = {key: value for key, value in record.items() if key != "perplexity"}
    samples = tuple(Sample(**sample) for sample in values.pop("samples"))
    loss = math.nan if values["loss"] is None else values["loss"]
    return Evaluated(**{**values, "loss": loss, "samples": samples})


def append(path: Path, record: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Every whole line; a kill may have cut off the last one."""
    if not path.exists():
        return []
    *lines, _ = path.read_text(encoding="utf-8").split("\n")  # splitlines knows other ends too
    return [json.loads(line) for line in lines]


def forget_later(path: Path, step: int) -> list[dict[str, Any]]:
    """After a resume: drops the lines of later steps, which are done again; returns those that stay."""
    kept = [record for record in read(path) if record["step"] <= step]
    if path.exists():
        temporary = path.with_name(f".{path.name}")
        temporary.write_text("")
        for record in kept:
            append(temporary, record)
        temporary.replace(path)
    return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
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
    def best(self) -> tuple[int, float]:
        """(step, loss) of the first of the lowest; there must have been an evaluation."""
        return min(self.losses, key=lambda pair: pair[1])

    @property
    def since_best(self) -> int:
        """Evaluations in a row that were no better than one before them: any lower loss is."""
        return len(self.losses) - 1 - self.losses.index(self.best) if self.losses else 0

    def stop_words(self, step: int, steps: int) -> str:
        """Why a run ends early, and what it leaves."""
        best, loss = self.best
        return (
            f"no better evaluation for {self.since_best} in a row: stopped at step {step} of {steps}; "
            f"the model is this step's, the lowest evaluation loss was {loss:.3f} at step {best}"
        )
