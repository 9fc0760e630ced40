"""One of two gloo processes, of which one has a step that is not finite: what each raises."""

from collections.abc import Callable
from typing import Any

import torch

from tests.support.tiny import batch, engine, tiny
from trainer.model.chunked_loss import LogitsForm
from trainer.model.engine import Engine
from trainer.model.finite import NotFinite


def spoil_loss(engine: Engine) -> Callable[[], None]:
    """Makes each loss infinite and leaves each gradient finite; returns what ends it."""
    head = engine.head
    assert head is not None
    is_other = torch.arange(head.linear.out_features) > 0
    good = head.form
    head.form = LogitsForm(offset=torch.zeros(len(is_other)).masked_fill(is_other, -torch.inf))

    def end() -> None:
        head.form = good

    return end


def spoil_gradient(engine: Engine) -> Callable[[], None]:
    """Makes each gradient NaN and leaves each loss finite; returns what ends it."""

    def hook(_: Any, __: Any, hidden: Any) -> Any:
        hidden.register_hook(lambda gradient: gradient * torch.nan)
        return hidden

    return engine.unwrapped.register_forward_hook(hook).remove


SPOILERS = {"loss": spoil_loss, "gradient": spoil_gradient}


def raised(part: str, spoilt_rank: int, *, fsdp: bool) -> str | None:
    """The part that this rank's step raises; None if it is taken."""
    model = tiny("t5")
    made = engine(model, fsdp=fsdp)
    data = batch(model, 2, 4, 3)
    made.preallocate(data)
    if made.accelerator.process_index == spoilt_rank:
        SPOILERS[part](made)
    made.forward_backward([data], target_tokens=2 * data.target_tokens)
    try:
        made.optimizer_step(1e-3)
    except NotFinite as error:
        return str(error.part)
    return None


def main() -> list[list[Any]]:
    """[part, rank that has it, whether sharded, part that is raised here] of each case."""
    return [
        [part, spoilt, fsdp, raised(part, spoilt, fsdp=fsdp)]
        for part in SPOILERS
        for spoilt in (0, 1)
        for fsdp in (False, True)
    ]
