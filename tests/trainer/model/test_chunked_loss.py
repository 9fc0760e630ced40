"""The loss without logits is the loss of logits: value and gradients, for every form of head."""

from typing import Any

import pytest
import torch

from tests.support import heads, tiny
from trainer.model import chunked_loss
from trainer.model.engine import Engine

FAMILIES = heads.FAMILIES


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven tokens each, and the weight's gradient in slices of 100 rows."""
    monkeypatch.setitem(chunked_loss.CHUNK_BYTES, "cpu", 4 * 7 * heads.VOCABULARY)
    monkeypatch.setattr(chunked_loss, "LEAST_TOKENS", 1)
    monkeypatch.setattr(chunked_loss, "SLICE_BYTES", 4 * 100 * 32)


def both(model: Any, **values: Any) -> tuple[Engine, Engine]:
    """Engines of copies of the model, in chunks and with logits."""
    return tiny.engine(model, **values), tiny.engine(model, **values, loss="logits")


def step_of(engine: Engine, *, target_tokens: int = 9) -> tuple[float, dict[str, torch.Tensor]]:
    """(loss, gradients by name) of two micro-batches, one with masked positions in its midst."""
    batches = [heads.batch(engine.unwrapped, rows=3, seed=seed) for seed in (1, 2)]
    loss = engine.forward_backward(batches, target_tokens=target_tokens)
    return loss.item(), {
        name: weight.grad for name, weight in engine.trainable.items() if weight.grad is not None
    }


def assert_same(engines: tuple[Engine, Engine], *, tolerance: float) -> None:
    chunked, whole = engines
    assert chunked.notice is None
    (loss, own), (expected, others) = step_of(chunked), step_of(whole)

    assert loss == pytest.approx(expected, rel=tolerance)
    assert own.keys() == others.keys()
    largest = max(float(gradient.norm()) for gradient in others.values())
    for name, gradient in others.items():  # a key's bias has a gradient of rounding errors alone
        allowed = tolerance * max(float(gradient.norm()), 1e-3 * largest)
        assert float((own[name] - gradient).norm()) <= allowed, name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_loss_and_gradients_of_its_logits(family: str) -> None:
    """Scaled, capped, shifted, tied, biased: in float32, in training and in evaluation."""
    engines = both(heads.with_head(family))

    assert_same(engines, tolerance=2e-5)
    chunked, whole = (
        engine.summed_loss(heads.batch(engine.unwrapped, rows=3)).item()
        for engine in evaluating(engines)
    )
    assert chunked == pytest.approx(whole, rel=1e-6)


def evaluating(engines: tuple[Engine, Engine]) -> Any:
    for engine in engines:
        with engine.evaluating():
            yield engine
