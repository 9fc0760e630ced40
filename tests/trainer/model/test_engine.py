"""One optimizer step is the same however it is cut; a dry run leaves nothing behind."""

import copy
import functools
from typing import Any

import numpy as np
import pytest
import torch

from autotune.partition import Costs
from autotune.plan import cut
from tests.support import sharded_script, tiny
from trainer.batching.collator import Collator
from trainer.evaluation.evaluator import dry_run_evaluation, evaluate
from trainer.model.engine import Engine
from trainer.reading.readers import bundled

STEP = 16
Parts = tuple[Engine, Collator]


def make(kind: str, *, data: str = "train", double: bool = False) -> Parts:
    loaded = sharded_script.load(kind)
    model: Any = loaded.model
    model = model if double else model.float()
    return tiny.engine(model), tiny.collator(model, loaded.encoder, bundled(data))


shared = functools.cache(make)
"""Made once for all tests that leave the weights as they are."""


def gradient(
    parts: Parts, micro_batch: int | tuple[int, ...], overhead: float | None = None
) -> tuple[Any, float]:
    """(all gradients as one vector, loss per target token) of the same 16 samples, cut so.

    The parts of several ranks are added up on one.
    """
    engine, collator = parts
    rows = np.arange(100, 100 + STEP)
    costs = Costs(longest=collator.longest(), overhead=overhead)
    world_size = 1 if isinstance(micro_batch, int) else len(micro_batch)
    ranks = cut(collator.lengths(rows), world_size=world_size, micro_batch=micro_batch, costs=costs)
    tokens = collator.target_tokens(rows)
    of_ranks = [
        tiny.gradient(engine, [collator.batch(rows[piece]) for piece in pieces], tokens)
        for pieces in ranks
    ]
    return sum(vector for vector, _ in of_ranks), sum(loss for _, loss in of_ranks)


@pytest.mark.parametrize("kind", ["seq2seq", "causal"])
@pytest.mark.parametrize(("micro_batch", "overhead"), [(1, None), (3, None), (5, 20.0), (16, 40.0)])
def test_the_gradient_does_not_depend_on_the_cut(
    kind: str, micro_batch: int, overhead: float | None
) -> None:
    """16 samples at once, one by one, or in uneven pieces: the same to float32's precision."""
    parts = shared(kind)

    whole, whole_loss = gradient(parts, STEP)
    pieces, pieces_loss = gradient(parts, micro_batch, overhead)

    assert pieces_loss == pytest.approx(whole_loss, rel=1e-5)
    assert torch.linalg.norm(pieces - whole) <= 1e-5 * torch.linalg.norm(whole)


@pytest.mark.parametrize("overhead", [None, 20.0])
def test_ranks_of_unequal_sizes_add_up_to_the_same_gradient(overhead: float | None) -> None:
    """What two devices with room for 5 and for 2 sequences compute, added up on one.

    In double precision: in these samples a ReLU's input is 3e-7, and float32 rounds it to either side
    of the kink.
    """
    parts = shared("seq2seq", double=True)

    whole, whole_loss = gradient(parts, STEP)
    added, added_loss = gradient(parts, (5, 2), overhead)

    assert added_loss == pytest.approx(whole_loss, rel=1e-5)
    assert torch.linalg.norm(added - whole) <= 1e-12 * torch.linalg.norm(whole)


def test_an_evaluation_does_not_depend_on_its_size() -> None:
    """A larger batch of evaluation is a matter of memory and speed alone."""
    engine, collator = shared("seq2seq", data="valid")

    small, large = (evaluate(engine, collator, size=size) for size in (7, 64))

    assert small == pytest.approx(large, rel=1e-5)


def test_a_dry_run_of_an_evaluation_changes_nothing() -> None:
    """Neither the weights nor the gradients, and the model trains on."""
    engine, collator = shared("seq2seq", data="valid")
    before = copy.deepcopy(engine.unwrapped.state_dict())

    dry_run_evaluation(engine, collator, size=8)

    after = engine.unwrapped.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(parameter.grad is None for parameter in engine.unwrapped.parameters())
    assert engine.model.training


def test_a_causal_loss_counts_the_response_alone() -> None:
    """Prompt tokens are read, not learnt; every response token and the end is."""
    _, collator = shared("causal")

    batch = collator.batch([7, 8])

    counted = (batch.labels != -100).sum().item()
    assert counted == batch.target_tokens
    assert counted == len(collator.store.target(7)) + len(collator.store.target(8))


def test_a_dry_run_changes_nothing() -> None:
    """The next real step is the one that a run without a dry run would take."""
    (tried, collator), (plain, _) = make("seq2seq"), make("seq2seq")
    batches = [collator.batch(range(first, first + 4)) for first in (100, 104)]

    tried.preallocate(collator.worst_case_batch(1))
    tried.dry_run([collator.worst_case_batch(8)] * 2)
    for engine in (tried, plain):
        tiny.trained(engine, *batches, rate=1e-3)

    pairs = zip(tried.unwrapped.parameters(), plain.unwrapped.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_worst_batch_has_the_longest_source_and_the_longest_target() -> None:
    """No batch of training can be larger, or lacks a mask where this one has it."""
    _, collator = shared("seq2seq")

    worst = collator.worst_case_batch(3)

    mask, longest = worst.inputs["attention_mask"], collator.store.longest()
    assert worst.inputs["input_ids"].shape == mask.shape == (3, longest[0])
    assert worst.labels.shape == (3, longest[1])
    assert mask.sum() == mask.numel() - 1


def test_accelerates_own_variables_change_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's `accelerate launch` sets them: accelerate would divide by them once more, or compile."""
    before, _ = gradient(shared("seq2seq"), 4)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "inductor")

    after, _ = gradient(make("seq2seq"), 4)

    assert torch.equal(before, after)
