"""The loss without logits is the loss of logits: value and gradients, for every form of head."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support import heads, tiny
from trainer.model import chunked_loss
from trainer.model.chunked_loss import LogitsForm
from trainer.model.engine import Engine


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven tokens each, and the weight's gradient in slices of 100 rows."""
    monkeypatch.setitem(chunked_loss.CHUNK_BYTES, "cpu", 4 * 7 * heads.VOCABULARY)
    monkeypatch.setattr(chunked_loss, "LEAST_TOKENS", 1)
    monkeypatch.setattr(chunked_loss, "SLICE_BYTES", 4 * 100 * 32)


@pytest.fixture
def _any_precision() -> Iterator[None]:
    """accelerate keeps the precision of a process's first engine."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


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


@pytest.mark.parametrize("family", heads.FAMILIES)
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


@pytest.mark.usefixtures("_any_precision")
@pytest.mark.parametrize(
    ("family", "values", "tolerance"),
    [
        ("t5", {"precision": "bf16"}, 2e-2),
        ("gemma2", {"precision": "bf16"}, 2e-2),
        ("phi", {"precision": "bf16"}, 2e-2),
        ("t5", {"lora_rank": 2}, 2e-5),
        ("llama", {"lora_rank": 2, "gradient_checkpointing": True}, 2e-5),
        ("bart", {"freeze": "encoder"}, 2e-5),
    ],
)
def test_other_ways_to_train_have_them_too(
    family: str, values: dict[str, Any], tolerance: float
) -> None:
    """bf16 rounds to 4e-3; adapters and frozen parts leave the head without a gradient of its own."""
    assert_same(both(heads.with_head(family), **values), tolerance=tolerance)


@pytest.mark.usefixtures("_any_precision")
def test_a_loss_in_bf16_is_exact_to_float32s_precision() -> None:
    """Products are rounded, their sum is not: as with logits."""
    chunked, whole = both(heads.with_head("llama"), precision="bf16")

    (loss, _), (expected, _) = step_of(chunked), step_of(whole)

    assert loss == pytest.approx(expected, rel=1e-6)


def test_the_loss_scale_of_fp16_comes_before_its_rounding() -> None:
    """Without the scale most of this gradient is below fp16's smallest number."""
    torch.manual_seed(0)
    head = nn.Linear(32, heads.VOCABULARY, bias=False)
    hidden, labels = torch.randn(1, 20, 32), torch.randint(heads.VOCABULARY, (1, 20))

    def gradient(scale: float, dtype: torch.dtype | None) -> torch.Tensor:
        factor = torch.tensor(1e-6 * scale)
        _, found = chunked_loss.chunked_loss(
            hidden, labels, head, LogitsForm(), dtype=dtype, factor=factor
        )
        return found / scale

    exact = gradient(1.0, None)

    assert torch.allclose(gradient(2.0**16, torch.float16), exact, rtol=2e-2, atol=1e-9)
    assert not torch.allclose(gradient(1.0, torch.float16), exact, rtol=2e-2, atol=1e-9)


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else [result]:
            if isinstance(made, torch.Tensor) and made.dim():
                self.elements = max(self.elements, made.untyped_storage().size() // 4)
        return result


@pytest.mark.parametrize("loss", ["chunked", "logits"])
def test_no_tensor_has_a_logit_for_each_token(loss: str) -> None:
    """Neither in a step nor in an evaluation."""
    engine = tiny.engine(heads.with_head("llama"), loss=loss)
    batch = heads.batch(engine.unwrapped, rows=30, source=40)
    logits = batch.labels.numel() * heads.VOCABULARY

    with Largest() as step:
        engine.forward_backward([batch], target_tokens=1)
    with engine.evaluating(), Largest() as evaluation:
        engine.summed_loss(batch)

    builds = [found.elements >= logits for found in (step, evaluation)]
    assert builds == [loss == "logits"] * 2


def test_a_micro_batch_without_a_counted_position_adds_nothing() -> None:
    """As FSDP2's ranks have one when others have more."""
    engine = tiny.engine(heads.with_head("t5"))
    batch = heads.batch(engine.unwrapped, rows=2)
    batch.labels.fill_(-100)

    loss = engine.forward_backward([batch], target_tokens=1)

    assert loss.item() == 0
    assert all(not p.grad.any() for p in engine.unwrapped.parameters() if p.grad is not None)
