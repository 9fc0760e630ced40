"""Which samples a step sees: a function of (seed, position) and of nothing else.

Training reads one endless stream: a permutation of the rows for each epoch, end to end. A step takes
the next `effective batch` positions, also across an epoch's end, so that every step is whole and no
sample is dropped or repeated. The stream knows no rank, no micro-batch and no restart.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


class SampleOrder:
    """The stream of row numbers."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows = rows
        self.seed = seed

    def take(self, start: int, count: int) -> Rows:
        """The `count` row numbers from position `start` of the stream on."""
        parts: list[Rows] = []
        while count > 0:
            epoch, offset = divmod(start, self.rows)
            part = _permutation(self.rows, self.seed, epoch)[offset : offset + count]
            parts.append(part)
            start += len(part)
            count -= len(part)
        return np.concatenate(parts)


@lru_cache(maxsize=2)
def _permutation(rows: int, seed: int, epoch: int) -> Rows:
    return np.random.default_rng([seed, epoch]).permutation(rows)


def count_steps(rows: int, effective_batch: int, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps of a run; the last one is filled up from the next epoch."""
    return max_steps if max_steps is not None else max(1, -int(-epochs * rows // effective_batch))
