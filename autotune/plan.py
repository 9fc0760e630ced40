"""How an effective batch is cut into micro-batches: arithmetic on sample counts, nothing else.

A step has the same samples however it is cut; only memory and speed change. The trainer chooses the
samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autotune.errors import PlanError
from autotune.partition import Costs, Counts, partition_points, sort_orders

MAX_WORLD_SIZE = 65_536
"""The most processes of a run; a larger number in a file or flag is a slip."""
MOST_SHOWN = 16
"""Sizes in a message."""
MicroBatch = int | Sequence[int]
"""Micro-batches: one size for all ranks, or one for each."""


@dataclass(frozen=True, slots=True, init=False)
class Plan:
    """An effective batch, and how it is cut on every device."""

    sizes: tuple[int, ...]
    """The micro-batch of each rank: sequences per forward pass."""
    effective_batch: int

    def __init__(self, *, micro_batch: MicroBatch, effective_batch: int, world_size: int) -> None:
        if not 1 <= world_size <= MAX_WORLD_SIZE:
            raise PlanError(
                f"{world_size} is not a number of processes", f"use 1 to {MAX_WORLD_SIZE:,}"
            )
        object.__setattr__(self, "sizes", _each_rank(micro_batch, world_size))
        object.__setattr__(self, "effective_batch", effective_batch)
        self._check()

    def _check(self) -> None:
        if self.effective_batch < self.world_size:
            raise PlanError(
                f"effective batch {self.effective_batch} is smaller than {self.world_size} "
                "processes",
                f"tune with --effective-batch {self.world_size} or more, or use fewer processes",
            )
        if min(self.sizes) < 1:
            raise PlanError(
                f"micro-batch {min(self.sizes)} is not a number of sequences", "use 1 or more"
            )
        most = max(self.shares)
        if self.micro_batch <= most:
            return
        if self.is_even:
            raise PlanError(
                f"micro-batch {self.micro_batch} is larger than one device's share of the "
                f"effective batch: {self.effective_batch} over {self.world_size} "
                f"process{'es' if self.world_size > 1 else ''} is {most}",
                f"use --micro-batch {most} or less, or tune with a larger --effective-batch",
            )
        raise PlanError(
            f"micro-batches {self} are larger than the devices' shares of the effective batch: of "
            f"{self.effective_batch}, the device with {self.micro_batch} takes {most}",
            "use "
            f"--micro-batch {-(-self.effective_batch // self.world_size)} or less for all of them, "
            f"or tune with --effective-batch {sum(self.sizes)} or more",
        )

    def __str__(self) -> str:
        """The sizes as people read them: `8`, or `12 + 6`."""
        return str(self.micro_batch) if self.is_even else _listed(self.sizes)

    @property
    def world_size(self) -> int:
        return len(self.sizes)

    @property
    def micro_batch(self) -> int:
        """The largest of the sizes."""
        return max(self.sizes)

    @property
    def is_even(self) -> bool:
        """Whether all ranks have the same size."""
        return len(set(self.sizes)) == 1

    @property
    def shares(self) -> tuple[int, ...]:
        """Samples of a step that each rank takes, in proportion to its size.

        Rounded by largest remainder, lower ranks first: shares of equal sizes differ by one at most.
        """
        total = sum(self.sizes)
        shares = [self.effective_batch * size // total for size in self.sizes]
        lacks = [self.effective_batch * size % total for size in self.sizes]
        by_lack = sorted(range(self.world_size), key=lambda rank: -lacks[rank])
        for rank in by_lack[: self.effective_batch - sum(shares)]:
            shares[rank] += 1
        return tuple(shares)

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimizer step on the device that has the most."""
        return max(-(-share // size) for share, size in zip(self.shares, self.sizes, strict=True))


def _each_rank(micro_batch: MicroBatch, world_size: int) -> tuple[int, ...]:
    """A size for each rank; raises PlanError if their number is not that of the ranks."""
    if isinstance(micro_batch, int):
        return (micro_batch,) * world_size
    if len(micro_batch) != world_size:
        raise PlanError(
            f"micro-batches {_listed(micro_batch)} are for {len(micro_batch)} "
            f"process{'es' if len(micro_batch) > 1 else ''}, not {world_size}",
            "give one size for each process, or one for all",
        )
    return tuple(micro_batch)


def _listed(sizes: Sequence[int]) -> str:
    """The sizes, or the first of many."""
    more = " + …" if len(sizes) > MOST_SHOWN else ""
    return " + ".join(map(str, sizes[:MOST_SHOWN])) + more


def cut(
    lengths: Counts, *, world_size: int, micro_batch: MicroBatch, costs: Costs | None = None
) -> tuple[tuple[Counts, ...], ...]:
    """The micro-batches of each rank, as positions in the step; together they hold each position once.

    `lengths` is (samples, sides): the tokens of each side that is padded apart, source and target.
    `micro_batch` is the number of longest samples that fit into one, for all ranks or for each. The
    samples are sorted by length and spread evenly over the ranks, in proportion to their shares. Each
    rank's samples are cut where padding and the overhead of a micro-batch cost least. Without `costs`
    the longest lengths are those of the step.

    Raises:
        PlanError: fewer samples than ranks, or a micro-batch that no rank could fill.
    """
    plan = Plan(micro_batch=micro_batch, effective_batch=len(lengths), world_size=world_size)
    costs = costs or Costs(longest=tuple(lengths.max(0).tolist()))
    owners = _deal(plan.shares)
    ways = (_cut_in_order(lengths, order, owners, plan, costs) for order in sort_orders(lengths))
    return min(ways, key=lambda way: way[1])[0]


def _cut_in_order(
    lengths: Counts, order: Counts, owners: Counts, plan: Plan, costs: Costs
) -> tuple[tuple[tuple[Counts, ...], ...], float]:
    """The micro-batches when samples are dealt in that order, and the highest cost of a rank."""
    hands = [order[owners == rank] for rank in range(plan.world_size)]
    found = [
        partition_points(lengths[hand], size, costs)
        for hand, size in zip(hands, plan.sizes, strict=True)
    ]
    micro_batches = tuple(
        tuple(np.split(hand, places)) for hand, (places, _) in zip(hands, found, strict=True)
    )
    return micro_batches, max(price for _, price in found)


def _deal(shares: tuple[int, ...]) -> Counts:
    """(samples,) the rank of each position; the positions of a rank are spread evenly.

    Position k of a rank with n belongs at (k + 1/2) / n of the whole; ties go to the lower rank.
    """
    ranks = np.repeat(np.arange(len(shares)), shares)
    places = np.concatenate([(np.arange(share) + 0.5) / share for share in shares])
    return ranks[np.argsort(places, kind="stable")]


def choose_effective(micro_batch: MicroBatch, *, world_size: int, wanted: int, fixed: bool) -> int:
    """The effective batch that a tuned size trains with.

    The user's choice (`fixed`) stays. Any other grows until every device has a whole micro-batch.
    """
    return wanted if fixed else max(wanted, sum(_each_rank(micro_batch, world_size)))
