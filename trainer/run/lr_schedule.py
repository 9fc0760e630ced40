"""The learning rate as a share of its peak: a pure function of the step's number.

There is no scheduler object to save and resume, and nothing can step it twice (accelerate's prepared
scheduler steps once for each process).
"""

import math

from trainer.config.options import Schedule

LEAST_WARMUP = 10
"""Steps. Adam's first steps divide by the size of single gradients; see `optimizers.EPSILON`."""


def rate_share(schedule: Schedule, step: int, steps: int, warmup: float) -> float:
    """The share of the peak at step `step` (from 0) of `steps`: a linear rise, then `schedule`.

    `warmup` is a share of the steps. Cosine and linear would reach zero one step after the last, so
    no step is wasted on a rate of zero.
    """
    rising = max(1, round(warmup * steps), min(LEAST_WARMUP, steps // 2))
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    match schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        case "linear":
            return 1 - done
        case "constant":
            return 1.0
