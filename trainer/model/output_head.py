"""The output head of a model apart from the rest, so that a loss needs no logits.

transformers has no common interface for it: T5 scales what enters the head, Cohere and Granite what leaves
it, Gemma caps it softly, BART adds a bias. So the head is found by trying: a few positions go through the
whole model once, and what it makes of the head's output is measured and checked. Where the check fails the
loss is computed from the model's own logits.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from autotune.devices.allocator import is_out_of_memory
from trainer.model.chunked_loss import LogitsForm, chunked_loss

TOKENS = 8
"""Positions that the check takes."""
LARGEST = 100.0
"""The head's largest output in the check: far above every soft cap (Gemma's is 30)."""
TOLERANCE = 1e-5
"""Of the largest change of a logit; float32 rounds to 1e-7."""


class Unfit(StrEnum):
    """Why a head cannot be taken apart from its model."""

    NO_LINEAR = "no linear"
    OTHER_LOGITS = "other logits"
    OTHER_WEIGHTS = "other weights"
    OTHER_RANK = "other rank"
    REFUSED = "refused"


REASONS = {
    Unfit.NO_LINEAR: "its output head is no plain linear layer",
    Unfit.OTHER_LOGITS: "its logits are not the output of its head, scaled, shifted or capped",
    Unfit.OTHER_RANK: "another process cannot do without",
    Unfit.OTHER_WEIGHTS: "its logits depend on trained weights beside those of its head",
    Unfit.REFUSED: f"the model refuses the {TOKENS} tokens on which its head is tried",
}


class OutputHead:
    """A linear output head, and hooks that leave it out of the model's forward pass. No file has hooks."""

    def __init__(self, model: PreTrainedModel, linear: nn.Linear, form: LogitsForm) -> None:
        self.linear = linear
        self.form = form
        self._is_left_out = False
        self._hidden: Tensor | None = None
        linear.register_forward_pre_hook(self._before_head)
        # before FSDP2's hook, which waits for the gradient of what the model returns
        model.register_forward_hook(self._after_model, prepend=True)

    @property
    def weights(self) -> list[nn.Parameter]:
        """The head's trained weights."""
        return [weight for weight in self.linear.parameters() if weight.requires_grad]

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """The model returns what its head would read, (batch, seq, width), and computes no logits."""
        self._is_left_out = True
        try:
            yield
        finally:
            self._is_left_out = False
            # it holds every activation, also after a pass that ran out of memory
            self._hidden = None

    def loss(
        self, hidden: Tensor, labels: Tensor,
        *, dtype: torch.dtype | None, factor: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As `chunked_loss`, under this head."""
        return chunked_loss(hidden, labels, self.linear, self.form, dtype=dtype, factor=factor)

    def _before_head(self, _: nn.Module, args: tuple[Any, ...]) -> Any:
        if not self._is_left_out:
            return None
        self._hidden = args[0]
        return (args[0][:, :0],)  # of no positions, so that what follows has no work

    def _after_model(self, _: nn.Module, args: Any, output: Any) -> Any:
        if not self._is_left_out:
            return None
        return self._hidden


def find_head(model: PreTrainedModel) -> OutputHead | Unfit:
    """The model's output head, checked against the model's own logits; or why it has none.

    Draws no random numbers and changes no state. Every rank of a sharded model calls it. Raises only what
    `is_out_of_memory` knows.
    """
    whole: Any = model
    linear = whole.get_output_embeddings()
    if type(linear) is not nn.Linear:  # an adapter's and a quantised layer compute more
        return Unfit.NO_LINEAR
    try:
        found = _trial(model, linear)
    except Exception as error:  # a model of someone's own may raise anything
        if is_out_of_memory(error):
            raise
        return Unfit.REFUSED
    if found is None:
        return Unfit.OTHER_LOGITS
    inputs, logits = found
    if not _leaves(logits) <= {id(inputs), *map(id, linear.parameters())}:
        return Unfit.OTHER_WEIGHTS
    with torch.no_grad():
        output = linear(inputs)
        for cap in (*_caps(model.config.to_dict()), None):
            form = _fit(output, logits, cap)
            if form is not None and _agrees(form.apply(output.clone()), logits):
                return OutputHead(model, linear, form)
    return Unfit.OTHER_LOGITS


def _trial(model: PreTrainedModel, linear: nn.Linear) -> tuple[Tensor, Tensor] | None:
    """What the head read in one forward pass, and the model's logits; None if it was not read as known.

    The head reads the model's own hidden states, enlarged, and zeros in the first position.
    """
    read: list[Tensor] = []

    def replace_inputs(_: nn.Module, args: tuple[Any, ...]) -> Any:
        if len(args) != 1:  # a keyword, which no hook here reads
            return None
        hidden: Tensor = args[0].detach().clone()
        if hidden.dim() == 3:
            hidden[:, 0] = 0
        largest = float((hidden @ linear.weight.detach().T).abs().max())
        hidden *= LARGEST / largest if largest else 1.0
        read.append(hidden.requires_grad_())
        return (hidden,)

    device = next(model.parameters()).device
    ids = torch.arange(TOKENS, device=device)[None] % linear.out_features
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids
    was_training = model.training
    hook = linear.register_forward_pre_hook(replace_inputs)
    try:
        model.train(False)
        with torch.enable_grad():
            logits: Any = model(**batch).logits
    finally:
        hook.remove()
        model.train(was_training)
    expected = (1, TOKENS, linear.out_features)
    if len(read) != 1 or read[0].shape[:-1] != expected[:-1] or logits.shape != expected:
        return None
    return read[0], logits


def _leaves(output: Tensor) -> set[int]:
    """The identities of the tensors that autograd would send a gradient of the output to."""
    found: set[int] = set()
    seen: set[Any] = set()
    waiting = [output.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [following for following, _ in node.next_functions]
    return found


def _fit(output: Tensor, logits: Tensor, cap: float | None) -> LogitsForm | None:
    """The form with that cap which makes these logits of that output; None if no number does."""
    plain = logits.double()
    if cap is not None:
        plain = cap * (plain / cap).clamp(-0.99, 0.99).atanh()
    output = output.double()
    at_zero, output = output[0, 0], output[0, 1:] - output[0, 0]  # the bias, and the rest
    moved = plain[0, 1:] - plain[0, 0]
    # large enough to be exact, and below where a cap flattens
    size = output.abs()
    counts = (size > 1e-2) & (plain[0, 1:].abs() < 0.9 * (cap or math.inf))
    if not counts.any():
        return None
    scale = float((moved[counts] / output[counts]).median())
    scale = 1.0 if abs(scale - 1) < 1e-6 else scale
    offset = plain[0, 0] - scale * at_zero
    is_shifted = bool((offset.abs() > TOLERANCE).any())
    return LogitsForm(scale=scale, cap=cap, offset=offset.to(logits.dtype) if is_shifted else None)


def _agrees(own: Tensor, logits: Tensor) -> bool:
    moved = float((logits - logits[:, :1]).abs().max())
    return bool(torch.allclose(own, logits, rtol=0, atol=TOLERANCE * moved))


def _caps(config: Mapping[str, Any]) -> Iterator[float]:
    """The numbers that a configuration calls caps, attention's too."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _caps(value)
        elif "cap" in str(name) and isinstance(value, int | float) and value > 0:
            yield float(value)
