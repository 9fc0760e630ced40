"""Weights that a micro-batch leaves out: the cut changes neither their training nor their state."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BartConfig

from autotune.partition import Costs
from autotune.plan import cut
from tests.support import sharded_script, sparse_script, tiny
from tests.support.pair_script import found_by
from trainer.batching.collator import Collator
from trainer.model.engine import Engine
from trainer.model.unused import may_leave_out, with_weights
from trainer.reading.readers import bundled


@pytest.mark.parametrize("case", sparse_script.CASES)
def test_two_processes_train_as_one(case: str, pair: Path) -> None:
    """With two micro-batches and one: losses, gradient norms, weights, and which have a state."""
    one = sparse_script.figures(case, slice(3))

    for rank in found_by("sparse", pair):
        assert rank[case]["losses"] == pytest.approx(one["losses"], rel=1e-6)
        assert rank[case]["norms"] == pytest.approx(one["norms"], rel=1e-10)
        assert rank[case]["weights"] == pytest.approx(one["weights"], rel=1e-10)
        assert rank[case]["states"] == one["states"] == list(one["weights"])


def test_those_processes_have_an_expert_that_one_early_micro_batch_alone_uses() -> None:
    """It is in no other micro-batch of either process, and DDP exchanges gradients in the last ones."""
    model = sparse_script.model_of("experts")

    used = []
    for each in sparse_script.micro_batches(model):
        engine = tiny.engine(model)
        engine.forward_backward([each], target_tokens=1)
        weights = engine.trainable.items()
        used.append({name for name, p in weights if p.grad is not None and p.grad.any()})

    assert used[0] - used[1] - used[2]


def steps(kind: str, size: int) -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    """(loss, gradient norm) of four steps of 16 rows in micro-batches of that size, and the weights."""
    loaded = sharded_script.load(kind)
    engine: Engine = tiny.engine(loaded.model)
    collator: Collator = tiny.collator(loaded.model, loaded.encoder, bundled("train"), longest=12)
    engine.preallocate(collator.worst_case_batch(1))
    found = []
    for step in range(4):
        rows = np.arange(16 * step, 16 * step + 16)
        costs = Costs(longest=collator.longest())
        (pieces,) = cut(collator.lengths(rows), world_size=1, micro_batch=size, costs=costs)
        batches = [collator.batch(rows[piece]) for piece in pieces]
        loss = engine.forward_backward(batches, target_tokens=collator.target_tokens(rows))
        found.append((loss.item(), engine.optimizer_step(1e-2)))
    return found, {name: weight.detach() for name, weight in engine.trainable.items()}


@pytest.mark.parametrize("kind", tiny.SPARSE)
def test_the_micro_batch_changes_no_step_of_a_model_of_experts(kind: str) -> None:
    """Cut into 3, 8 or 16 sequences: losses, gradient norms and final weights in double precision."""
    whole, weights = steps(kind, 16)

    for size in (3, 8):
        found, own = steps(kind, size)
        assert np.allclose(found, whole, rtol=[1e-6, 1e-9])  # losses are added up in float32
        assert all(torch.allclose(own[name], weights[name], rtol=1e-7) for name in weights)


def test_an_unused_weight_has_a_gradient_of_zeros_and_a_state_from_the_start() -> None:
    """So it is decayed at each step, whether or not a micro-batch uses it."""
    model = sparse_script.model_of("never")
    engine: Engine = tiny.engine(model)

    engine.preallocate(tiny.batch(model, 1, 4, 3))
    tiny.trained(engine, tiny.batch(model, 2, 4, 3), steps=1, rate=0.1)

    never = engine.trainable["never"]
    assert never.grad is not None
    assert not never.grad.any()
    assert engine.raw_optimizer.state[never]
    assert torch.equal(never, torch.full((2, 2), 1 - 0.1 * 0.01, dtype=torch.float64))


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.SPARSE])
def test_a_configuration_that_names_experts_is_recognised(family: str) -> None:
    """A dense one is not, and keeps its speed."""
    config = tiny.tiny(family).config.to_dict()

    found = may_leave_out(config)

    assert found == may_leave_out({"text_config": config}) == (family in tiny.SPARSE)


def test_a_configuration_that_drops_layers_is_recognised() -> None:
    """LayerDrop leaves out other layers in each forward pass."""
    assert may_leave_out(BartConfig(decoder_layerdrop=0.1).to_dict())
    assert not may_leave_out(BartConfig().to_dict())


def test_added_zeros_change_no_gradient() -> None:
    """Not a bit of a used weight's; an unused one gets zeros."""
    used, unused = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    data = torch.randn(5, 3)
    (alone,) = torch.autograd.grad((data @ used).exp().sum(), used)

    torch.autograd.backward(with_weights((data @ used).exp(), [used, unused]).sum())

    assert used.grad is not None
    assert unused.grad is not None
    assert torch.equal(used.grad, alone)
    assert not unused.grad.any()
