"""NEFTune: uniform noise on the input embeddings while training (Jain et al., arXiv 2310.05914).

The noise of a sample is within ± alpha / √(L · d), L being the sample's own tokens and d the width.
transformers' and the paper's code take L from the padded batch, so that the noise depends on which
samples travel together; here it does not, and a step is the same in distribution however it is cut.
An encoder-decoder's noise is the encoder's alone: its input is the prompt. Evaluation has none.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class Noise:
    """Two hooks: one learns which tokens are the samples' own, one adds the noise to them."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self.lengths: Tensor | None = None
        """(batch,), while the stack that reads the input runs: an embedding may serve two stacks."""

    def read_mask(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.lengths = kwargs["attention_mask"].sum(1)

    def forget(self, *_: Any) -> None:
        self.lengths = None

    def add(self, embedding: nn.Module, _: tuple[Any, ...], output: Tensor) -> Tensor:
        """The embeddings with noise, (batch, seq, width); padding's is masked away by the model."""
        if self.lengths is None or not embedding.training:
            return output
        bound = self.alpha / (self.lengths * output.shape[-1]).sqrt()  # (batch,)
        return output + (2 * torch.rand_like(output) - 1) * bound[:, None, None].to(output.dtype)


def add_noise(model: PreTrainedModel, alpha: float) -> None:
    """Lets the model train on noisy embeddings. Hooks are saved with no model."""
    noise = Noise(alpha)
    stack: Any = model.get_encoder() if model.config.is_encoder_decoder else model
    stack.register_forward_pre_hook(noise.read_mask, with_kwargs=True)
    stack.get_input_embeddings().register_forward_hook(noise.add)
    stack.register_forward_hook(noise.forget, always_call=True)
