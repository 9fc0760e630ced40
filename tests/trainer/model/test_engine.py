"""One optimizer step is the same however it is cut; nothing is left behind by a rehearsal."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from autotune.partition import Costs
from autotune.plan import cut
from trainer.batching.collator import Batch, Collator
from trainer.config.settings import WorkloadSettings
from trainer.data.encoder import Encoder
from trainer.data.readers import bundled
from trainer.data.token_store import TokenStore, open_store
from trainer.evaluation.evaluator import dry_run_evaluation, evaluate
from trainer.model.accelerator import make_accelerator
from trainer.model.engine import Engine
from trainer.model.loading import Loaded, load_model

SETTINGS = WorkloadSettings(device="cpu", dropout=0.0)
STEP = 16


@pytest.fixture(scope="module")
def seq2seq() -> Loaded:
    return load_model("chatlm-tiny", dropout=0.0, seed=3)


@pytest.fixture(scope="module")
def causal(seq2seq: Loaded) -> Loaded:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, pad_token_id=0, bos_token_id=3, eos_token_id=1,
    )  # fmt: skip
    return Loaded(
        model=LlamaForCausalLM(config),
        encoder=Encoder(seq2seq.encoder.tokenizer, is_causal=True),
        learning_rate=1e-3,
        identity="tiny llama",
    )


def parts(loaded: Loaded, data: str = "train") -> tuple[Engine, Collator]:
    store = open_store((bundled(data),), loaded.encoder, max_source=64, max_target=64)
    start = getattr(loaded.model.config, "decoder_start_token_id", None)
    engine = Engine(make_accelerator(SETTINGS), copy.deepcopy(loaded.model), SETTINGS)
    return engine, Collator(store, loaded.encoder, start)


def step_batches(collator: Collator, micro_batch: int, overhead: float | None) -> list[Batch]:
    rows = np.arange(100, 100 + STEP)
    (pieces,) = cut(
        collator.lengths(rows),
        world_size=1,
        micro_batch=micro_batch,
        costs=Costs(longest=collator.longest(), overhead=overhead),
    )
    return [collator.batch(rows[piece]) for piece in pieces]


def gradient(loaded: Loaded, micro_batch: int, overhead: float | None = None) -> tuple[Any, float]:
    """(all gradients as one vector, loss per target token) of the same 16 samples."""
    engine, collator = parts(loaded)
    batches = step_batches(collator, micro_batch, overhead)
    tokens = sum(batch.target_tokens for batch in batches)
    loss = engine.forward_backward(batches, target_tokens=tokens)
    return gradients(engine), loss.item() / tokens


def gradients(engine: Engine) -> Any:
    """All of them as one vector."""
    return torch.cat(
        [p.grad.flatten() for p in engine.unwrapped.parameters() if p.grad is not None]
    )


@pytest.mark.parametrize("kind", ["seq2seq", "causal"])
@pytest.mark.parametrize(("micro_batch", "overhead"), [(1, None), (3, None), (5, 20.0), (16, 40.0)])
def test_the_gradient_does_not_depend_on_the_cut(
    kind: str, micro_batch: int, overhead: float | None, request: pytest.FixtureRequest
) -> None:
    """16 samples at once, one by one, or in uneven pieces: the same to float32's precision."""
    loaded: Loaded = request.getfixturevalue(kind)

    whole, whole_loss = gradient(loaded, STEP)
    pieces, pieces_loss = gradient(loaded, micro_batch, overhead)

    assert pieces_loss == pytest.approx(whole_loss, rel=1e-5)
    assert torch.linalg.norm(pieces - whole) <= 1e-5 * torch.linalg.norm(whole)


@pytest.mark.parametrize("overhead", [None, 20.0])
def test_ranks_of_unequal_sizes_add_up_to_the_same_gradient(
    seq2seq: Loaded, overhead: float | None
) -> None:
    """What two devices with room for 5 and for 2 sequences compute, added up on one.

    In double precision: in these samples a ReLU's input is 3e-7, and float32 rounds it to either side
    of the kink.
    """
    double = replace(seq2seq, model=copy.deepcopy(seq2seq.model).double())
    engine, collator = parts(double)
    rows = np.arange(100, 100 + STEP)
    ranks = cut(
        collator.lengths(rows),
        world_size=2,
        micro_batch=(5, 2),
        costs=Costs(longest=collator.longest(), overhead=overhead),
    )
    tokens = collator.target_tokens(rows)

    whole, whole_loss = gradient(double, STEP)
    losses = [
        engine.forward_backward(
            [collator.batch(rows[p]) for p in pieces], target_tokens=tokens
        ).item()
        for pieces in ranks
    ]
    added = gradients(engine)

    assert sum(losses) / tokens == pytest.approx(whole_loss, rel=1e-5)
    assert torch.linalg.norm(added - whole) <= 1e-12 * torch.linalg.norm(whole)


def test_an_evaluation_does_not_depend_on_its_size(seq2seq: Loaded) -> None:
    """A larger batch of evaluation is a matter of memory and speed alone."""
    engine, collator = parts(seq2seq, "valid")

    small, large = (evaluate(engine, collator, size=size) for size in (7, 64))

    assert small == pytest.approx(large, rel=1e-5)


def test_a_rehearsed_evaluation_changes_nothing(seq2seq: Loaded) -> None:
    """Neither the weights nor the gradients, and the model trains on."""
    engine, collator = parts(seq2seq, "valid")
    before = copy.deepcopy(engine.unwrapped.state_dict())

    dry_run_evaluation(engine, collator, size=8)

    after = engine.unwrapped.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(parameter.grad is None for parameter in engine.unwrapped.parameters())
    assert engine.model.training


def test_the_loss_is_the_mean_over_target_tokens(seq2seq: Loaded) -> None:
    """What transformers itself computes for one unpadded sample."""
    engine, collator = parts(seq2seq)
    batch = collator.batch([7])

    loss = engine.summed_loss(batch).item() / batch.target_tokens

    own = engine.unwrapped(
        input_ids=batch.inputs["input_ids"],
        attention_mask=batch.inputs["attention_mask"],
        labels=batch.labels,
    )
    assert loss == pytest.approx(own.loss.item(), rel=1e-5)


def test_a_causal_loss_counts_the_response_alone(causal: Loaded) -> None:
    """Prompt tokens are read, not learnt; every response token and the end is."""
    _, collator = parts(causal)

    batch = collator.batch([7, 8])

    counted = (batch.labels != -100).sum().item()
    assert counted == batch.target_tokens
    assert counted == len(collator.store.target(7)) + len(collator.store.target(8))


def test_a_rehearsal_changes_nothing(seq2seq: Loaded) -> None:
    """The next real step is the one that a run without a rehearsal would take."""
    rehearsed, collator = parts(seq2seq)
    plain, _ = parts(seq2seq)
    batches = step_batches(collator, 4, None)
    tokens = sum(batch.target_tokens for batch in batches)

    rehearsed.preallocate(collator.worst_case_batch(1))
    rehearsed.dry_run([collator.worst_case_batch(8)] * 2)
    for engine in (rehearsed, plain):
        for _ in range(2):
            engine.forward_backward(batches, target_tokens=tokens)
            engine.optimizer_step(1e-3)

    pairs = zip(rehearsed.unwrapped.parameters(), plain.unwrapped.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_worst_batch_has_the_longest_source_and_the_longest_target(seq2seq: Loaded) -> None:
    """No batch of training can be larger, or lacks a mask where this one has it."""
    _, collator = parts(seq2seq)
    store: TokenStore = collator.store

    worst = collator.worst_case_batch(3)

    mask = worst.inputs["attention_mask"]
    assert worst.inputs["input_ids"].shape == mask.shape == (3, store.longest()[0])
    assert worst.labels.shape == (3, store.longest()[1])
    assert mask.sum() == mask.numel() - 1


def test_accelerates_own_variables_change_no_gradient(
    seq2seq: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's `accelerate launch` sets them: accelerate would divide by them once more, or compile."""
    before, _ = gradient(seq2seq, 4)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "inductor")

    after, _ = gradient(seq2seq, 4)

    assert torch.equal(before, after)
