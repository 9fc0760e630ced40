"""Whether others kept still on a device while we measured.

The driver says how much is used, the workers how much of it their allocators hold. The rest is
*foreign*: others' memory, and our own context, which grows a little when kernels are first loaded.
What moves beyond that is a neighbour who came or left.
"""

from collections.abc import Sequence
from dataclasses import dataclass

STILL = 64 * 2**20
"""Bytes that a context may move between two probes."""
LOADING = 512 * 2**20
"""Bytes that it may grow in a worker's first probe: kernels, cuBLAS and NCCL are loaded on use."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """What was foreign on each device when it was last looked at, bytes."""

    amounts: tuple[int, ...]
    loading: bool = True
    """Whether the workers have yet to run their first probe."""

    def moved(self, now: Sequence[int]) -> tuple[int, ...]:
        """How much neighbours took (or freed, below 0) since, by device."""
        most = LOADING if self.loading else STILL
        changes = [after - before for before, after in zip(self.amounts, now, strict=True)]
        return tuple(change if change > most or change < -STILL else 0 for change in changes)


def passed_through(
    sampled: Sequence[int], exact: Sequence[int], others: Sequence[int], *, loading: bool
) -> bool:
    """Whether somebody held memory for a while in mid-probe.

    `sampled` is the highest that the driver showed, `exact` our own peak by the allocator and the
    context: a sample far above it was not ours.
    """
    most = LOADING if loading else STILL
    pairs = zip(sampled, exact, others, strict=True)
    return any(seen - held - ours > most for seen, ours, held in pairs)
