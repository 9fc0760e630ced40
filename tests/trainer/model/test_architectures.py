"""The architectures that people fine-tune, tiny and at random: one gradient however a step is cut."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel

from autotune.errors import ModelError
from autotune.plan import cut
from tests.support.tokenisers import TURNS, tokenizer
from trainer.batching.collator import IGNORED, Batch, Collator
from trainer.config.settings import WorkloadSettings
from trainer.data.encoder import Encoder
from trainer.data.token_store import open_store
from trainer.model.accelerator import make_accelerator
from trainer.model.engine import Engine

SETTINGS = WorkloadSettings(device="cpu", dropout=0.0)
PAD, EOS, BOS = 0, 1, 3
WORDS = 2048
"""Of the bundled tokenizer."""


def t5(kind: str) -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=WORDS, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_decoder_layers=1,
        num_heads=4, dropout_rate=0.0, pad_token_id=PAD, eos_token_id=EOS,
        decoder_start_token_id=PAD,
    )  # fmt: skip
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config)


def bart() -> Any:
    config = BartConfig(
        vocab_size=WORDS, d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
        decoder_ffn_dim=64, max_position_embeddings=256, dropout=0.0, pad_token_id=PAD,
        bos_token_id=BOS, eos_token_id=EOS, decoder_start_token_id=EOS,
    )  # fmt: skip
    return BartForConditionalGeneration(config)


def gpt2() -> Any:
    config = GPT2Config(
        vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=256, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=EOS, eos_token_id=EOS,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def decoder(kind: str) -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=WORDS, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=PAD, bos_token_id=BOS,
        eos_token_id=EOS,
    )  # fmt: skip
    return getattr(transformers, f"{kind}ForCausalLM")(config)


SEQ2SEQ: dict[str, tuple[Callable[[], Any], Callable[[], Encoder]]] = {
    "T5": (lambda: t5("T5"), lambda: Encoder(tokenizer(), is_causal=False)),
    "mT5": (lambda: t5("MT5"), lambda: Encoder(tokenizer(), is_causal=False)),
    "BART": (bart, lambda: Encoder(wrapping(), is_causal=False)),
}
CAUSAL: dict[str, tuple[Callable[[], Any], Callable[[], Encoder]]] = {
    "GPT-2": (gpt2, lambda: Encoder(tokenizer(pad_token=None), is_causal=True)),
    "Llama": (lambda: decoder("Llama"), lambda: Encoder(tokenizer(TURNS), is_causal=True)),
    "Qwen2": (
        lambda: decoder("Qwen2"),
        lambda: Encoder(tokenizer(TURNS.replace("[EOS]", "[SEP]")), is_causal=True),
    ),
}
EVERY = SEQ2SEQ | CAUSAL


def wrapping() -> Any:
    """A tokenizer that puts `<s>` before a text and `</s>` after it, as BART's does."""
    from tokenizers.processors import TemplateProcessing

    own = tokenizer()
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", BOS), ("[EOS]", EOS)]
    )
    return own


TALKS = [
    [("user", "早"), ("assistant", "早。"), ("user", "一加一等于几？"), ("assistant", "等于二。")],
    [("user", "你好"), ("assistant", "你好！有什么可以帮您？")],
    [("system", "短"), ("user", "谢谢"), ("assistant", "不客气。")],
    [("user", "再见"), ("assistant", "")],
    [("user", "x"), ("assistant", "y" * 40), ("user", "z" * 30), ("assistant", "好")],
]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CHATLM_CACHE", str(tmp_path / "cache"))
    rows = [{"messages": [{"role": r, "content": c} for r, c in talk]} for talk in TALKS]
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def parts(name: str, data: str) -> tuple[Engine, Collator, Encoder]:
    """In double precision: a kink of ReLU is not to blur what is compared."""
    make_model, make_codec = EVERY[name]
    torch.manual_seed(3)
    model, encoder = make_model().double(), make_codec()
    store = open_store((data,), encoder, max_source=64, max_target=64)
    start = getattr(model.config, "decoder_start_token_id", None)
    return (
        Engine(make_accelerator(SETTINGS), model, SETTINGS),
        Collator(store, encoder, start),
        encoder,
    )


def gradient(engine: Engine, batches: list[Batch], tokens: int) -> Any:
    engine.optimizer.zero_grad()
    engine.forward_backward(batches, target_tokens=tokens)
    return torch.cat(
        [p.grad.flatten() for p in engine.unwrapped.parameters() if p.grad is not None]
    )


@pytest.mark.parametrize("name", EVERY)
def test_every_architecture_has_one_gradient(name: str, data: str) -> None:
    """All conversations at once, and in pieces of two by length: exactly the same."""
    engine, collator, _ = parts(name, data)
    rows = np.arange(len(TALKS))
    (pieces,) = cut(collator.lengths(rows), world_size=1, micro_batch=2)
    tokens = collator.target_tokens(rows)

    whole = gradient(engine, [collator.batch(rows)], tokens)
    cut_up = gradient(engine, [collator.batch(rows[piece]) for piece in pieces], tokens)

    assert len(pieces) >= 2
    assert torch.linalg.norm(whole) > 0
    assert torch.linalg.norm(cut_up - whole) <= 1e-12 * torch.linalg.norm(whole)
    assert sum(collator.batch([row]).target_tokens for row in range(len(TALKS))) == tokens


@pytest.mark.parametrize("name", EVERY)
def test_the_loss_is_what_transformers_computes(name: str, data: str) -> None:
    """From labels that stand where their tokens do, which its own models shift."""
    engine, collator, encoder = parts(name, data)
    batch = collator.batch([0])
    if encoder.is_causal:
        ids = batch.inputs["input_ids"]
        own_labels = torch.full_like(ids, IGNORED)
        own_labels[:, 1:] = batch.labels[:, :-1]
        learnt = own_labels[own_labels != IGNORED]
        assert torch.equal(ids[own_labels != IGNORED], learnt)
    else:
        ids, own_labels = batch.inputs["input_ids"], batch.labels

    loss = engine.summed_loss(batch).item() / batch.target_tokens

    own = engine.unwrapped(input_ids=ids, labels=own_labels)
    assert loss == pytest.approx(own.loss.item(), rel=1e-6)


@pytest.mark.parametrize("name", CAUSAL)
def test_padding_of_a_causal_batch_is_neither_read_nor_learnt(name: str, data: str) -> None:
    """Also where the padding is the end of sequence, as of GPT-2, which has no token for it."""
    engine, collator, encoder = parts(name, data)

    short, both = collator.batch([3]), collator.batch([3, 4])

    width = short.inputs["input_ids"].shape[1]
    alone = engine.unwrapped(**short.inputs).logits[0]
    padded = engine.unwrapped(**both.inputs).logits[0, :width]
    assert encoder.pad == (EOS if name == "GPT-2" else PAD)
    assert both.inputs["attention_mask"][0].sum() == width
    assert (both.labels[0, width:] == IGNORED).all()
    assert torch.allclose(alone, padded, atol=1e-9)


@pytest.mark.parametrize(("name", "start"), [("T5", PAD), ("mT5", PAD), ("BART", EOS)])
def test_a_decoder_begins_with_its_own_token(name: str, start: int, data: str) -> None:
    """And reads the target shifted by it; BART's texts begin with a token of their own as well."""
    _, collator, _ = parts(name, data)

    batch = collator.batch([0, 4])

    read, labels = batch.inputs["decoder_input_ids"], batch.labels
    opening = [BOS] if name == "BART" else []
    assert read[:, 0].tolist() == [start, start]
    assert torch.equal(read[0, 1:], labels[0, :-1].masked_fill(labels[0, :-1] == IGNORED, PAD))
    assert (batch.inputs["input_ids"][0, : len(opening)].tolist()) == opening
    assert (labels[0, : len(opening)].tolist()) == opening
    assert (labels == EOS).sum(1).tolist() == [1, 1]


def test_a_decoder_without_a_first_token_is_refused(data: str) -> None:
    """Before anything is trained."""
    encoder = Encoder(tokenizer(), is_causal=False)
    store = open_store((data,), encoder, max_source=64, max_target=64)

    with pytest.raises(ModelError) as caught:
        Collator(store, encoder, None)

    assert str(caught.value).startswith("the model's config.json has no decoder_start_token_id, ")


def test_a_loader_process_is_given_no_tokenizer(data: str) -> None:
    """It would import transformers and hold the vocabulary; what it needs is two numbers."""
    encoder = Encoder(tokenizer(TURNS), is_causal=True)
    collator = Collator(open_store((data,), encoder, max_source=64, max_target=64), encoder, None)

    sent = pickle.dumps(collator)

    arrived = pickle.loads(sent)
    assert len(sent) < 2000
    assert torch.equal(arrived.batch([0]).labels, collator.batch([0]).labels)
