"""Our trainer made to cut as others do: `python -m bench.plain` for `python -m trainer`, same flags.

Micro-batches of one size in the order of the stream, not sorted, each padded to its longest: what is
left of the difference to a peer is then the loop's. Nothing but the cut is another.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import trainer.batching.step_loader
from autotune.plan import Plan
from trainer.launch.entry import main

Counts = npt.NDArray[np.int64]


def in_order(
    lengths: Counts, *, world_size: int, micro_batch: int | Sequence[int], **_: Any
) -> tuple[tuple[Counts, ...], ...]:
    """As `autotune.plan.cut`, without a look at the lengths."""
    plan = Plan(micro_batch=micro_batch, effective_batch=len(lengths), world_size=world_size)
    hands = np.split(np.arange(len(lengths)), np.cumsum(plan.shares)[:-1])
    return tuple(
        tuple(np.split(hand, range(size, len(hand), size)))
        for hand, size in zip(hands, plan.sizes, strict=True)
    )


if __name__ in ("__main__", "__mp_main__"):  # the latter is a loader process
    trainer.batching.step_loader.cut = in_order  # type: ignore[attr-defined]  # its own name for `plan.cut`

if __name__ == "__main__":
    main()
