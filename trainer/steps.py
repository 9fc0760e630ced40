"""Optimizer steps as data: which samples, this rank's share of them, cut and padded."""

from dataclasses import dataclass

from torch.utils.data import Dataset

from autotune.pieces import Costs
from autotune.plan import Plan, cut
from trainer.batches import Batch, Collator
from trainer.order import StepOrder


@dataclass(frozen=True, slots=True)
class Step:
    """One rank's part in an optimizer step."""

    batches: list[Batch]
    target_tokens: int
    """Of the whole step, over all ranks."""


class Steps(Dataset[Step]):
    """Step by number: its samples, this rank's share of them, cut and padded."""

    def __init__(
        self,
        collator: Collator,
        order: StepOrder,
        plan: Plan,
        *,
        costs: Costs,
        rank: int,
    ) -> None:
        self._collator = collator
        self._order = order
        self._plan = plan
        self._costs = costs
        self._rank = rank

    def __getitem__(self, step: int) -> Step:
        rows = self._order.step(step)
        pieces = cut(
            self._collator.lengths(rows),
            world_size=self._plan.world_size,
            micro_batch=self._plan.sizes,
            costs=self._costs,
        )[self._rank]
        batches = [self._collator.batch(rows[piece]) for piece in pieces]
        return Step(batches, self._collator.target_tokens(rows))
