"""How an effective batch is cut into micro-batches: arithmetic on sample counts, nothing else.

The same samples take part in a step however it is cut; only memory and speed change. What the
samples are is the trainer's business.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autotune.errors import PlanError


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An effective batch, and how it is cut on every device."""

    micro_batch: int
    effective_batch: int
    world_size: int

    def __post_init__(self) -> None:
        if self.effective_batch < self.world_size:
            raise PlanError(
                f"effective batch {self.effective_batch} is smaller than {self.world_size} "
                f"processes; tune with --effective-batch {self.world_size} or more, or use fewer "
                f"processes"
            )
        if self.micro_batch < 1:
            raise PlanError(
                f"micro-batch {self.micro_batch} is not a number of sequences; use 1 or more"
            )
        if self.micro_batch > self.share:
            raise PlanError(
                f"micro-batch {self.micro_batch} is larger than one device's share of the "
                f"effective batch: {self.effective_batch} over {self.world_size} "
                f"process{'es' if self.world_size > 1 else ''} is {self.share}; use --micro-batch "
                f"{self.share} or less, or tune with a larger --effective-batch"
            )

    @property
    def share(self) -> int:
        """The most samples that one device takes part with in a step."""
        return -(-self.effective_batch // self.world_size)

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimizer step on the device that has the most."""
        return -(-self.share // self.micro_batch)


Counts = npt.NDArray[np.int64]


def cut(
    lengths: Counts, *, world_size: int, micro_batch: int, overhead: float | None = None
) -> tuple[tuple[Counts, ...], ...]:
    """For each rank its micro-batches, as positions in the step.

    `lengths` has a row for each of the step's samples, (samples, sides): the tokens of each side
    that is padded apart, source and target. Together the micro-batches hold every position once.
    They are of like length: sorted samples are dealt out to the ranks like cards, and each rank's
    hand is cut into runs of at most `micro_batch`, as few as that takes. `overhead` is what one more
    micro-batch costs, in tokens; where it is known, a hand is cut oftener when that saves more
    padding than it costs.

    Raises:
        PlanError: fewer samples than ranks, or a micro-batch that no rank could fill.
    """
    Plan(micro_batch=micro_batch, effective_batch=len(lengths), world_size=world_size)
    by_length = np.lexsort((np.arange(len(lengths)), lengths.sum(1)))
    hands = [by_length[rank::world_size] for rank in range(world_size)]
    price = math.inf if overhead is None else overhead
    return tuple(
        tuple(np.split(hand, _borders(lengths[hand], micro_batch, price))) for hand in hands
    )


def _borders(lengths: Counts, most: int, price: float) -> list[int]:
    """Where to cut sorted samples: the least padded tokens, each micro-batch costing `price` more."""
    count = len(lengths)
    if math.isinf(price):
        return list(range(most, count, most))
    least = np.full(count + 1, np.inf)  # cost of the first n samples
    least[0] = 0.0
    start = np.zeros(count + 1, dtype=np.int64)  # where their last micro-batch begins
    for stop in range(1, count + 1):
        first = max(0, stop - most)
        widest = np.maximum.accumulate(lengths[first:stop][::-1])[::-1].sum(1)  # from i to stop
        area = widest * np.arange(stop - first, 0, -1)
        costs = least[first:stop] + area + price
        best = int(costs.argmin())
        least[stop], start[stop] = costs[best], first + best
    borders = []
    while (count := int(start[count])) > 0:
        borders.append(count)
    return borders[::-1]


def choose_effective(micro_batch: int, *, world_size: int, wanted: int, fixed: bool) -> int:
    """The effective batch that a tuned size trains with.

    The user's own choice (`fixed`) stands. A base profile's is kept while it fills every device
    with a whole micro-batch, else it grows to what does.
    """
    return wanted if fixed else max(wanted, micro_batch * world_size)
