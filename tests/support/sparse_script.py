"""One of two gloo processes that train models which leave weights out: figures by case.

The first process has two micro-batches a step, the second one.
"""

import os
from typing import Any

import torch

from tests.support import sharded_script
from tests.support.tiny import batch, engine, tiny
from trainer.batching.collator import Batch
from trainer.model.engine import Engine

CASES: dict[str, dict[str, Any]] = {
    "experts": {},
    "frozen encoder": {"freeze": "encoder"},
    "adapters": {"lora_rank": 4},
    "recomputed": {"gradient_checkpointing": True},
    "never": {},
}
"""The settings of each case; all but the last train the same model of experts."""


def model_of(case: str) -> Any:
    """In double precision; in the last case dense, with a weight that no forward pass uses."""
    if case != "never":
        return sharded_script.load("switch").model
    model = tiny("t5").double()
    model.register_parameter("never", torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64)))
    return model


def micro_batches(model: Any) -> list[Batch]:
    """The three micro-batches of a step."""
    return [batch(model, rows, 4, 3, seed=rows) for rows in (1, 2, 3)]


def figures(case: str, own: slice) -> dict[str, Any]:
    """Losses of these micro-batches, gradient norms, and the final weights' sums of squares."""
    model = model_of(case)
    made: Engine = engine(model, **CASES[case])
    every = micro_batches(model)
    made.preallocate(every[0])
    losses, norms = [], []
    for _ in range(3):
        loss = made.forward_backward(
            every[own], target_tokens=sum(each.target_tokens for each in every)
        )
        losses.append(made.accelerator.reduce(loss, reduction="sum").item())
        norms.append(made.optimizer_step(1e-2))
    squares = {name: weight.square().sum().item() for name, weight in made.trainable.items()}
    states = [name for name, weight in made.trainable.items() if made.raw_optimizer.state[weight]]
    return {"losses": losses, "norms": norms, "weights": squares, "states": states}


def main() -> dict[str, dict[str, Any]]:
    """The figures of each case, of this rank's micro-batches."""
    own = slice(2) if os.environ["RANK"] == "0" else slice(2, 3)
    return {case: figures(case, own) for case in CASES}
