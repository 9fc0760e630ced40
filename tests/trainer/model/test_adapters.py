"""What is trained: LoRA's adapters or all but the encoder, in every family; nothing else moves."""

import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from autotune.errors import UsageError
from tests.support.tiny import CAUSAL, FAMILIES, SEQ2SEQ, batch, engine, tiny, trained
from trainer.config.settings import WorkloadSettings
from trainer.model.adapters import (
    LORA_LEARNING_RATE,
    adapt,
    default_learning_rate,
    merged,
    trainable_summary,
)


def logits(model: Any, data: Any) -> Any:
    model.eval()
    with torch.no_grad():
        return model(**data.inputs).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_alone_are_trained_and_the_export_is_merged(family: str, tmp_path: Path) -> None:
    """It loads without peft, answers as the trained model did, and not as the base; peft's is beside it."""
    base = tiny(family)
    own = engine(base, lora_rank=4)
    data = batch(base, 4, 12, 8)

    trained(own, data)
    names = list(own.trainable)
    after = {n: p.detach().clone() for n, p in own.unwrapped.named_parameters()}
    answer = logits(own.unwrapped, data)
    merged(own.unwrapped, own.adapter, tmp_path).save_pretrained(tmp_path)

    kind: Any = AutoModelForSeq2SeqLM if base.config.is_encoder_decoder else AutoModelForCausalLM
    loaded, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert names
    assert all(".lora_" in name for name in names)
    for name, parameter in base.named_parameters():
        where = name if name in after else name.replace(".weight", ".base_layer.weight")
        where = where if where in after else name.replace(".bias", ".base_layer.bias")
        assert torch.equal(after[where], parameter), name
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.allclose(logits(loaded, data), answer, atol=1e-4)
    assert not torch.allclose(logits(base, data), answer, atol=1e-3)
    assert (tmp_path / "adapter/adapter_model.safetensors").is_file()


def test_the_adapter_beside_the_export_is_the_same_on_the_base(tmp_path: Path) -> None:
    """As peft reads it."""
    import peft

    base = tiny("llama")
    own = engine(base, lora_rank=4, lora_alpha=5.0, lora_targets=("up_proj", "q_proj"))
    data = batch(base, 4, 12, 8)
    trained(own, data)
    answer = logits(own.unwrapped, data)
    merged(own.unwrapped, own.adapter, tmp_path).save_pretrained(tmp_path)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        again: Any = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"))

    assert torch.allclose(logits(again, data), answer, atol=1e-5)
    assert again.peft_config["default"].lora_alpha == 5.0
    assert set(again.peft_config["default"].target_modules) == {"up_proj", "q_proj"}


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_step_of_lora_does_not_depend_on_the_cut(family: str) -> None:
    """Two micro-batches or one with gradient checkpointing: the same norms, of the adapters alone."""
    base = tiny(family)
    one, other = batch(base, 4, 12, 8, seed=1), batch(base, 4, 12, 8, seed=2)
    joined = replace(
        one,
        inputs={name: torch.cat([part, other.inputs[name]]) for name, part in one.inputs.items()},
        labels=torch.cat([one.labels, other.labels]),
        target_tokens=one.target_tokens + other.target_tokens,
    )

    apart = trained(engine(base, lora_rank=4), one, other, steps=3)
    whole = trained(engine(base, lora_rank=4), joined, steps=3)
    again = trained(engine(base, lora_rank=4, gradient_checkpointing=True), joined, steps=3)

    assert apart == pytest.approx(whole, rel=1e-5)
    assert again == pytest.approx(whole, rel=1e-5)


def test_the_seed_alone_says_how_adapters_begin() -> None:
    """Every rank draws the same, wherever its random numbers stand; another seed draws others."""
    base = tiny("t5")
    first = engine(base, lora_rank=4, seed=3)
    torch.manual_seed(99)
    second, other = engine(base, lora_rank=4, seed=3), engine(base, lora_rank=4, seed=4)

    pairs = zip(first.trainable.values(), second.trainable.values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    pairs = zip(first.trainable.values(), other.trainable.values(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


def test_alpha_is_twice_the_rank_and_dropout_the_models_own() -> None:
    """Unless they are said."""
    config = engine(tiny("t5", dropout=0.25), lora_rank=4).adapter.peft_config["default"]
    said = engine(tiny("t5"), lora_rank=4, lora_alpha=4.0, dropout=0.125).adapter

    assert (config.lora_alpha, config.lora_dropout) == (8, 0.25)
    assert said.peft_config["default"].lora_alpha == 4.0
    assert said.peft_config["default"].lora_dropout == 0.125


def test_lora_learns_ten_times_as_fast() -> None:
    """As a pretrained model does, by default."""
    assert default_learning_rate(1e-4, WorkloadSettings()) == 1e-4
    assert default_learning_rate(1e-4, WorkloadSettings(lora_rank=8)) == LORA_LEARNING_RATE


def test_lora_says_how_little_it_trains() -> None:
    """A model that is trained whole says nothing."""
    own = engine(tiny("llama"), lora_rank=4)

    adapters = 2 * (4 * (32 + 32) + 4 * (32 + 16))  # two layers of q_proj and v_proj

    whole = sum(p.numel() for p in own.unwrapped.parameters())
    assert trainable_summary(own.unwrapped) == (
        f"training {adapters:,} of {whole:,} parameters ({adapters / whole:.2%})"
    )
    assert trainable_summary(tiny("llama")) is None


def test_a_missing_peft_is_answered_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is trained."""
    monkeypatch.setitem(sys.modules, "peft", None)  # as an import that fails

    with pytest.raises(UsageError) as caught:
        adapt(tiny("llama"), WorkloadSettings(lora_rank=4))

    assert str(caught.value) == (
        "--lora-rank needs peft, which is not installed; run `pip install peft`"
    )


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_a_frozen_encoder_answers_as_before_while_the_decoder_learns(family: str) -> None:
    """It keeps nothing for a backward pass either: its output asks for no gradient."""
    base = tiny(family)
    own = engine(base, freeze="encoder")
    data = batch(base, 4, 12, 8)
    read = {name: data.inputs[name] for name in ("input_ids", "attention_mask")}

    norms = trained(own, data, steps=4)

    encoder = own.unwrapped.get_encoder()
    hidden = encoder(**read).last_hidden_state
    assert not hidden.requires_grad
    before = base.train().get_encoder()(**read).last_hidden_state
    assert torch.allclose(hidden, before, atol=1e-5)  # without gradients attention rounds otherwise
    pairs = zip(encoder.parameters(), base.get_encoder().parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert own.trainable
    assert not any("encoder." in name and "decoder" not in name for name in own.trainable)
    assert norms[-1] < norms[0]


NO_ENCODER = (
    "--freeze encoder is for models with an encoder, and {} has none; leave it out, or train a small "
    "part of the model with --lora-rank 16"
)
NO_SUCH_LAYERS = (
    "--lora-targets q v names no layers that LoRA can adapt in a llama; its linear layers are "
    "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
)


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("llama", {"lora_rank": 4, "lora_targets": ("q", "v")}, NO_SUCH_LAYERS),  # typed as T5's
        *((family, {"freeze": "encoder"}, NO_ENCODER.format(family)) for family in CAUSAL),
    ],
)
def test_a_part_that_the_model_lacks_is_answered_with_what_to_do(
    family: str, values: dict[str, Any], message: str
) -> None:
    """Its own layers, or another option."""
    with pytest.raises(UsageError) as caught:
        adapt(tiny(family), WorkloadSettings(**values))

    assert str(caught.value) == message
