"""How an effective batch is cut into micro-batches: arithmetic on sample counts, nothing else.

The same samples take part in a step however it is cut; only memory and speed change. What the
samples are is the trainer's business.
"""

from dataclasses import dataclass
from itertools import pairwise

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
                f"processes; use --effective-batch {self.world_size} or more, or fewer processes"
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
                f"{self.share} or less, or a larger --effective-batch"
            )

    @property
    def share(self) -> int:
        """The most samples that one device takes part with in a step."""
        return -(-self.effective_batch // self.world_size)

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimizer step on the device that has the most."""
        return -(-self.share // self.micro_batch)


def cut(
    effective_batch: int, *, world_size: int, micro_batch: int
) -> tuple[tuple[range, ...], ...]:
    """For each rank its micro-batches, as ranges of positions in the step.

    Together the ranges are exactly `range(effective_batch)`, in order: shares differ by one
    sample at most, and only the last micro-batch of a rank may be smaller than `micro_batch`.

    Raises:
        PlanError: fewer samples than ranks, or a micro-batch that no rank could fill.
    """
    plan = Plan(micro_batch=micro_batch, effective_batch=effective_batch, world_size=world_size)
    bounds = [rank * effective_batch // plan.world_size for rank in range(world_size + 1)]
    return tuple(
        tuple(
            range(first, min(first + micro_batch, stop))
            for first in range(start, stop, micro_batch)
        )
        for start, stop in pairwise(bounds)
    )


def choose_effective(micro_batch: int, *, world_size: int, wanted: int, fixed: bool) -> int:
    """The effective batch that a tuned size trains with.

    The user's own choice (`fixed`) stands. A base profile's is kept while it fills every device
    with a whole micro-batch, else it grows to what does.
    """
    return wanted if fixed else max(wanted, micro_batch * world_size)
