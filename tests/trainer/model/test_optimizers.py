"""Each optimizer obeys the step's learning rate, and begins anew after its state was made resident."""

import copy
import sys
from typing import Any, get_args

import pytest
import torch

from autotune.choices import Optimizer
from autotune.errors import UsageError
from tests.support.tiny import batch, engine, tiny, trained
from trainer.model.engine import Engine
from trainer.model.optimizers import make_optimizer


@pytest.fixture(params=get_args(Optimizer))
def name(request: pytest.FixtureRequest) -> Any:
    """Each optimizer that can be chosen here."""
    if request.param == "adamw-8bit":
        pytest.importorskip("bitsandbytes")
    return request.param


def train(engine: Engine, steps: int, rate: float) -> list[float]:
    return trained(engine, batch(engine.unwrapped, 4, 10, 8), steps=steps, rate=rate)


def state(engine: Engine) -> list[torch.Tensor]:
    """What the optimizer holds of all weights."""
    values = (value for one in engine.raw_optimizer.state.values() for value in one.values())
    return [value for value in values if isinstance(value, torch.Tensor)]


def weights(engine: Engine) -> Any:
    return torch.cat([p.detach().flatten() for p in engine.unwrapped.parameters()])


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_step_after_preallocate_is_the_step_without_it(name: Optimizer, family: str) -> None:
    """To the bit, and so is the one after it; the weights and gradients are untouched before."""
    model = tiny(family)
    resident, plain = engine(model, optimizer=name), engine(model, optimizer=name)

    resident.preallocate(batch(model, 1, 5, 5, seed=9))

    assert torch.equal(weights(resident), weights(plain))
    assert train(resident, 3, 1e-3) == train(plain, 3, 1e-3)
    assert torch.equal(weights(resident), weights(plain))


def test_the_state_is_resident_before_the_first_step(name: Optimizer) -> None:
    """A step allocates no more of it."""
    own = engine(tiny("t5"), optimizer=name)

    def held() -> int:
        return sum(part.untyped_storage().nbytes() for part in state(own) if part.ndim > 0)

    own.preallocate(batch(own.unwrapped, 1, 5, 5))
    before = held()
    train(own, 1, 1e-3)

    assert before > 0
    assert held() == before


def test_a_step_is_as_long_as_its_learning_rate(name: Optimizer) -> None:
    """Twice the rate moves each matrix twice as far; none moves farther than the rate, in the mean."""
    model = tiny("t5")

    moved = []
    for rate in (1e-3, 2e-3):
        own = engine(model, optimizer=name)
        train(own, 1, rate)
        pairs = zip(own.unwrapped.parameters(), model.parameters(), strict=True)
        moved.append([((a - b).square().mean().sqrt() / rate).item() for a, b in pairs])

    assert moved[0] == pytest.approx(moved[1], rel=2e-2, abs=1e-3)
    assert 0.5 < max(moved[0]) <= 1.01


def test_the_loss_falls(name: Optimizer) -> None:
    """On one batch, by a third in 20 steps."""
    own = engine(tiny("llama"), optimizer=name)
    data = batch(own.unwrapped, 4, 10, 8)

    losses = []
    for _ in range(20):
        losses.append(own.forward_backward([data], target_tokens=data.target_tokens).item())
        own.optimizer_step(1e-2)

    assert losses[-1] < losses[0] * 2 / 3


def test_adafactor_holds_a_row_and_a_column_for_a_matrix() -> None:
    """Of a T5's weights a twentieth, where Adam holds two numbers each."""
    own = engine(tiny("t5"), optimizer="adafactor")
    own.preallocate(batch(own.unwrapped, 1, 5, 5))

    assert sum(part.numel() for part in state(own)) < 0.05 * weights(own).numel()


def test_weight_decay_pulls_at_matrices_alone() -> None:
    """A bias or the scale of a norm stays as it is where its gradient is zero."""
    layer = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    before = copy.deepcopy(layer.state_dict())
    optimizer = make_optimizer("adamw", layer.parameters(), weight_decay=0.5)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.1

    optimizer.step()

    after = layer.state_dict()
    assert torch.allclose(after["0.weight"], 0.95 * before["0.weight"])
    assert all(torch.equal(after[n], before[n]) for n in ("0.bias", "1.weight", "1.bias"))


def test_a_missing_bitsandbytes_is_answered_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And with what needs nothing."""
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)  # as an import that fails

    with pytest.raises(UsageError) as caught:
        make_optimizer("adamw-8bit", tiny("t5").parameters(), weight_decay=0.0)

    assert str(caught.value) == (
        "--optimizer adamw-8bit needs bitsandbytes, which is not installed; run "
        "`pip install bitsandbytes`, or use --optimizer adafactor, whose state is smaller still"
    )
