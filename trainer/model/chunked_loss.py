"""Cross entropy of hidden states under an output head, chunk by chunk: no logits of a whole micro-batch.

Each chunk's gradient is computed beside its loss, while its logits exist, so nothing is computed twice. It
is added to the gradient of the head's weight at once, so no second gradient of that size exists either. Only
positions that the loss counts are computed. In bf16 and fp16 the weight is copied once a micro-batch.

torch's `F.linear_cross_entropy` (2.13) works alike and is not used: it has no soft cap, returns the loss of
bf16 and fp16 in that precision, applies fp16's loss scale after the gradient has been rounded, and keeps one
or two tensors of the head's size. `bench.loss` times it too.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.batching.collator import IGNORED

CHUNK_BYTES = {"cpu": 2**23, "cuda": 2**29}
"""A chunk's logits in float32, by device. On a GPU the head's gradient, which each chunk adds to, is read
from further away."""
LEAST_TOKENS = 256
"""Of a chunk: with fewer, adding to the head's gradient takes longer than the products. On 2 cores, beside
other work: a vocabulary of 152,000 and a width of 256, 1.9 s with 27 tokens, 1.2 s with 110, 1.1 s with more;
of 29,298 and 768, 2.9 s with 128, 2.3 s with 256, 2.2 s with 512, and 2.7 s with logits."""
SLICE_BYTES = 2**26
"""Of a product that is added to a gradient of higher precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsForm:
    """How a model makes logits of its head's output: `cap · tanh((scale · output + offset) ÷ cap)`."""

    scale: float = 1.0
    offset: Tensor | None = None
    """(vocabulary,)"""
    cap: float | None = None
    """None: no soft cap."""

    def apply(self, output: Tensor) -> Tensor:
        """The logits, computed in place."""
        if self.scale != 1.0:
            output.mul_(self.scale)
        if self.offset is not None:
            output.add_(self.offset.to(output.device))
        return output if self.cap is None else output.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """The derivative of each logit for the head's output."""
        if self.cap is None:
            return self.scale
        return (logits / self.cap).square_().neg_().add_(1).mul_(self.scale)


@torch.no_grad()
def chunked_loss(
    hidden: Tensor, labels: Tensor, head: nn.Linear, form: LogitsForm,
    *, dtype: torch.dtype | None = None, factor: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(cross entropy summed over the counted positions, the gradient for `hidden` of `factor` times it).

    `hidden` is (batch, seq, width); `labels` is (batch, seq), on the CPU. The gradients of the head's weight
    and bias are added to what they have. Without a factor there are no gradients: that for `hidden` is
    zero. `dtype` is the precision of products, unless it is the weight's. With fp16's loss scale in
    `factor`, no product is rounded to 0.
    """
    flat = labels.flatten()
    places = (flat != IGNORED).nonzero()[:, 0]  # on the CPU, so nothing waits for a GPU
    index, targets = (part.to(hidden.device) for part in (places, flat[places, None]))
    states = hidden.detach().flatten(0, 1)  # (batch · seq, width)
    weight = head.weight.detach().to(dtype or head.weight.dtype)
    exact = torch.promote_types(weight.dtype, torch.float32)
    size = min(len(index), _chunk_tokens(hidden.device.type, len(weight)))
    products = hidden.new_empty((size, len(weight)), dtype=weight.dtype)  # (chunk, vocabulary)
    wide = products if exact == weight.dtype else products.to(exact)
    of_weight, of_bias = (
        (None, None) if factor is None else map(_gradient_of, (head.weight, head.bias))
    )
    total = hidden.new_zeros((), dtype=exact)
    gradient = states.new_zeros(states.shape if factor is not None else ())
    for start in range(0, len(index), max(1, size)):
        rows, wanted = index[start : start + size], targets[start : start + size]
        product = products[: len(rows)]
        inputs = states[rows].to(weight.dtype)  # (chunk, width)
        torch.mm(inputs, weight.T, out=product)
        logits = product if wide is products else wide[: len(rows)].copy_(product)
        if head.bias is not None:
            logits.add_(head.bias)
        form.apply(logits)
        slope = None if factor is None else form.slope(logits)
        expected = logits.gather(1, wanted)  # (chunk, 1)
        highest = logits.amax(1, keepdim=True)
        exponentials = logits.sub_(highest).exp_()
        summed = exponentials.sum(1, keepdim=True)
        total += (summed.log() + highest - expected).sum()
        if factor is None or slope is None:
            continue
        of_output = exponentials.mul_(factor / summed)
        of_output.scatter_add_(1, wanted, -factor.to(exact).expand(wanted.shape))
        if isinstance(slope, Tensor) or slope != 1.0:
            of_output.mul_(slope)
        if of_bias is not None:
            of_bias.add_(of_output.sum(0))
        if wide is not products:
            product.copy_(of_output)
        gradient[rows] = torch.mm(product, weight).to(gradient.dtype)
        if of_weight is not None:
            _add_product(of_weight, product, inputs)
    return total, gradient.expand(states.shape).view(hidden.shape)


def _chunk_tokens(device: str, vocabulary: int) -> int:
    return max(LEAST_TOKENS, CHUNK_BYTES[device] // (4 * vocabulary))


def _gradient_of(weight: Tensor | None) -> Tensor | None:
    """The gradient to add to, zeros where there is none yet; None for a weight that is not trained.

    FSDP2 exchanges those that a rank has, so a micro-batch without a counted position needs one too.
    """
    if weight is None or not weight.requires_grad:
        return None
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


def _add_product(gradient: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds `left.T @ right` to the gradient; in slices where the gradient is more precise."""
    if gradient.dtype == left.dtype:
        gradient.addmm_(left.T, right)
        return
    rows = max(1, SLICE_BYTES // (4 * gradient.shape[1]))
    for start in range(0, len(gradient), rows):
        part = slice(start, start + rows)
        gradient[part] += left[:, part].T @ right
