"""NEFTune's noise: as large as the sample's own length says, in training alone."""

import copy
import math
from typing import Any

import pytest
import torch

from tests.support.tiny import FAMILIES, batch, tiny
from trainer.model.neftune import add_noise

ALPHA = 5.0


def seen(model: Any, data: Any) -> tuple[Any, Any]:
    """What the stack that reads the input gets with noise, less what it gets without: (noise, mask)."""
    stack = model.get_encoder() if model.config.is_encoder_decoder else model
    embedding = stack.get_input_embeddings()
    outputs: list[Any] = []
    handle = embedding.register_forward_hook(lambda _, __, output: outputs.append(output))
    model(**data.inputs)
    handle.remove()
    clean = embedding._forward_hooks
    embedding._forward_hooks = type(clean)()
    without = embedding(data.inputs["input_ids"])
    embedding._forward_hooks = clean
    return outputs[0] - without, data.inputs["attention_mask"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sample_gets_noise_by_its_own_length(family: str) -> None:
    """Uniform within alpha / √(L · d), whatever it is padded to: rows of 40 tokens down to 33."""
    model = tiny(family).train()
    add_noise(model, ALPHA)

    torch.manual_seed(0)
    noise, mask = seen(model, batch(model, 8, 40, 8))

    for row in range(8):
        own = noise[row][mask[row].bool()]
        bound = ALPHA / math.sqrt(int(mask[row].sum()) * own.shape[-1])
        assert own.abs().max() <= bound * (1 + 1e-4)
        assert own.abs().max() > 0.98 * bound
        assert own.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
        assert own.mean().abs() < 0.1 * bound


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_an_evaluation_has_no_noise(family: str) -> None:
    """Nor has a model that is copied without its hooks, as one that was saved is."""
    plain = tiny(family).eval()
    noisy = copy.deepcopy(plain)
    add_noise(noisy, ALPHA)
    data = batch(plain, 3, 12, 6)

    with torch.no_grad():
        assert torch.equal(noisy.eval()(**data.inputs).logits, plain(**data.inputs).logits)
        assert not torch.equal(noisy.train()(**data.inputs).logits, plain(**data.inputs).logits)
    assert noisy.state_dict().keys() == plain.state_dict().keys()


def test_a_decoder_reads_no_noise() -> None:
    """It shares the embedding with the encoder: only what the encoder reads is the prompt."""
    model = tiny("t5").train()
    add_noise(model, ALPHA)
    outputs: list[Any] = []
    model.shared.register_forward_hook(lambda _, __, output: outputs.append(output.detach()))
    model.decoder.embed_tokens.register_forward_hook(
        lambda _, __, output: outputs.append(output.detach())
    )
    data = batch(model, 2, 9, 7)

    model(**data.inputs)

    decoders = [o for o in outputs if o.shape[1] == 7]
    assert decoders
    assert all(
        torch.equal(o, model.shared.weight[data.inputs["decoder_input_ids"]]) for o in decoders
    )
