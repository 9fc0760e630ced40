"""NEFTune: uniform noise on the input embeddings while training (Jain et al., arXiv 2310.05914).

The noise of a sample is within ± alpha / √(L · d): L is its number of tokens, d the width.
transformers and the paper's code take L from the padded batch, so the noise depends on the other
samples. Here it does not, and a step has the same distribution at every micro-batch size. In an
encoder-decoder only the encoder's input gets noise. Evaluation gets none.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class NeftuneHooks:
    """Hooks on a model: they read the samples' lengths from the mask and add noise to embeddings."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self.lengths: Tensor | None = None
        """(batch,) while the input's stack runs, else None: two stacks may share one embedding."""

    def read_mask(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.lengths = kwargs["attention_mask"].sum(1)

    def forget(self, *_: Any) -> None:
        self.lengths = None

    def add(self, embedding: nn.Module, _: tuple[Any, ...], output: Tensor) -> Tensor:
        """The embeddings with noise, (batch, seq, width); the model masks the noise of padding."""
        if self.lengths is None or not embedding.training:
            return output
        bound = self.alpha / (self.lengths * output.shape[-1]).sqrt()  # (batch,)
        return output + (2 * torch.rand_like(output) - 1) * bound[:, None, None].to(output.dtype)


def add_noise(model: PreTrainedModel, alpha: float) -> None:
    """Adds noise to the model's embeddings while it trains. Hooks are not saved with a model."""
    hooks = NeftuneHooks(alpha)
    stack: Any = model.get_encoder() if model.config.is_encoder_decoder else model
    stack.register_forward_pre_hook(hooks.read_mask, with_kwargs=True)
    stack.get_input_embeddings().register_forward_hook(hooks.add)
    stack.register_forward_hook(hooks.forget, always_call=True)
