"""The architectures that people fine-tune, tiny and at random: one gradient however a step is cut."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autotune.errors import ModelError
from autotune.plan import cut
from tests.support import tiny
from tests.support.data_files import json_lines
from tests.support.tokenisers import TURNS, tokenizer
from trainer.batching.collator import IGNORED, Collator
from trainer.data.encoder import Encoder
from trainer.model.engine import Engine

PAD, EOS, BOS = 0, 1, 3
ENCODERS: dict[str, Callable[[], Encoder]] = {
    "t5": lambda: Encoder(tokenizer(), is_causal=False),
    "mt5": lambda: Encoder(tokenizer(), is_causal=False),
    "bart": lambda: Encoder(wrapping(), is_causal=False),
    "gpt2": lambda: Encoder(tokenizer(pad_token=None), is_causal=True),
    "llama": lambda: Encoder(tokenizer(TURNS), is_causal=True),
    "qwen2": lambda: Encoder(tokenizer(TURNS.replace("[EOS]", "[SEP]")), is_causal=True),
}


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
    return str(json_lines(tmp_path, rows))


def parts(family: str, data: str) -> tuple[Engine, Collator, Encoder]:
    """In double precision: a kink of ReLU is not to blur what is compared."""
    model, encoder = tiny.tiny(family, seed=3).double(), ENCODERS[family]()
    return tiny.engine(model), tiny.collator(model, encoder, data), encoder


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_architecture_has_one_gradient(family: str, data: str) -> None:
    """All conversations at once, and in pieces of two by length: exactly the same."""
    engine, collator, _ = parts(family, data)
    rows = np.arange(len(TALKS))
    (pieces,) = cut(collator.lengths(rows), world_size=1, micro_batch=2)
    tokens = collator.target_tokens(rows)

    whole, _ = tiny.gradient(engine, [collator.batch(rows)], tokens)
    cut_up, _ = tiny.gradient(engine, [collator.batch(rows[piece]) for piece in pieces], tokens)

    assert len(pieces) >= 2
    assert torch.linalg.norm(whole) > 0
    assert torch.linalg.norm(cut_up - whole) <= 1e-12 * torch.linalg.norm(whole)
    assert sum(collator.batch([row]).target_tokens for row in range(len(TALKS))) == tokens


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_loss_is_what_transformers_computes(family: str, data: str) -> None:
    """From labels that stand where their tokens do, which its own models shift."""
    engine, collator, encoder = parts(family, data)
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


@pytest.mark.parametrize("family", tiny.CAUSAL)
def test_padding_of_a_causal_batch_is_neither_read_nor_learnt(family: str, data: str) -> None:
    """Also where the padding is the end of sequence, as of GPT-2, which has no token for it."""
    engine, collator, encoder = parts(family, data)

    short, both = collator.batch([3]), collator.batch([3, 4])

    width = short.inputs["input_ids"].shape[1]
    alone = engine.unwrapped(**short.inputs).logits[0]
    padded = engine.unwrapped(**both.inputs).logits[0, :width]
    assert encoder.pad == (EOS if family == "gpt2" else PAD)
    assert both.inputs["attention_mask"][0].sum() == width
    assert (both.labels[0, width:] == IGNORED).all()
    assert torch.allclose(alone, padded, atol=1e-9)


@pytest.mark.parametrize(("family", "start"), [("t5", PAD), ("mt5", PAD), ("bart", EOS)])
def test_a_decoder_begins_with_its_own_token(family: str, start: int, data: str) -> None:
    """And reads the target shifted by it; BART's texts begin with a token of their own as well."""
    _, collator, _ = parts(family, data)

    batch = collator.batch([0, 4])

    read, labels = batch.inputs["decoder_input_ids"], batch.labels
    opening = [BOS] if family == "bart" else []
    assert read[:, 0].tolist() == [start, start]
    assert torch.equal(read[0, 1:], labels[0, :-1].masked_fill(labels[0, :-1] == IGNORED, PAD))
    assert (batch.inputs["input_ids"][0, : len(opening)].tolist()) == opening
    assert (labels[0, : len(opening)].tolist()) == opening
    assert (labels == EOS).sum(1).tolist() == [1, 1]


def test_a_decoder_without_a_first_token_is_refused(data: str) -> None:
    """Before anything is trained."""
    model = tiny.tiny("t5")
    model.config.decoder_start_token_id = None

    with pytest.raises(ModelError) as caught:
        tiny.collator(model, ENCODERS["t5"](), data)

    assert str(caught.value).startswith("the model's config.json has no decoder_start_token_id, ")


def test_a_loader_process_is_given_no_tokenizer(data: str) -> None:
    """It would import transformers and hold the vocabulary; what it needs is two numbers."""
    collator = tiny.collator(tiny.tiny("llama"), ENCODERS["llama"](), data)

    sent = pickle.dumps(collator)

    arrived = pickle.loads(sent)
    assert len(sent) < 2000
    assert torch.equal(arrived.batch([0]).labels, collator.batch([0]).labels)
