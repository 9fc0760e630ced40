"""Zero gradients for weights that a forward pass leaves out, such as experts that no token was sent to.

DDP waits for the gradient of every trained weight, and FSDP2 exchanges only those that a rank has. So a
rank that leaves a weight out needs a gradient of zeros for it. `with_weights` adds those zeros: as views of
one number, so they take no memory. A weight that is used gets `gradient + 0`, which is the same number.
DDP's own `find_unused_parameters` searches the graph at each forward pass, and counts a weight as used if
any output needs it, even one that the loss ignores.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def may_leave_out(config: Mapping[str, Any]) -> bool:
    """Whether a configuration names experts or LayerDrop: each forward pass then uses other weights."""
    return any(
        may_leave_out(value) if isinstance(value, dict) else _is_sign(name, value)
        for name, value in config.items()
    )


def _is_sign(name: str, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return ("expert" in name and value > 1) or ("layerdrop" in name and value > 0)


def with_weights(output: Tensor, weights: Iterable[Tensor]) -> Tensor:
    """The output; its backward pass also gives each of the weights a gradient of zeros."""
    joined: Tensor = _Join.apply(output, *weights)  # type: ignore[no-untyped-call]
    return joined


def use_all_weights(module: nn.Module) -> None:
    """Makes each backward pass through the module give all its weights a gradient.

    FSDP2 replaces a block's weights only while the block runs, so a hook looks them up there. Call it
    before `fully_shard`, whose own hook takes the weights away.
    """
    module.register_forward_hook(_after_forward)


def _after_forward(module: nn.Module, _: Any, output: Any) -> Any:
    if not torch.is_grad_enabled():
        return output
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    if isinstance(output, Tensor):
        return with_weights(output, weights)
    first, *others = output
    return (with_weights(first, weights), *others)


def fill_gradients(model: PreTrainedModel) -> None:
    """Sets the gradients that a backward pass left out to zeros.

    The optimizer then treats each weight alike, however a step is cut: it skips a weight without a
    gradient, and neither decays it nor allocates its state.
    """
    for weight in model.parameters():
        if weight.requires_grad and weight.grad is None:
            weight.grad = torch.zeros_like(weight)


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, *weights: Tensor) -> Tensor:
        ctx.kinds = [(weight.shape, weight.dtype) for weight in weights]
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        zeros = (gradient.new_zeros((), dtype=dtype).expand(shape) for shape, dtype in ctx.kinds)
        return gradient, *zeros
