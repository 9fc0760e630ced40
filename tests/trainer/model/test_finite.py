"""A step whose loss or gradient is not finite is not taken, on no rank; fp16's scale skips a few."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import finite_script, tiny
from tests.support.pair_script import found_by
from trainer.config.settings import WorkloadSettings
from trainer.model.accelerator import make_accelerator
from trainer.model.engine import MOST_SKIPS, Engine
from trainer.model.finite import NotFinite, Part, first_not_finite, is_finite


def weights(engine: Engine) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in engine.unwrapped.parameters()]


def are_equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def an_engine(clip_norm: float = 1.0) -> Engine:
    settings = WorkloadSettings()
    return Engine(make_accelerator(settings), tiny.tiny("t5"), settings, clip_norm=clip_norm)


@pytest.mark.parametrize("clip_norm", [1.0, math.inf])
@pytest.mark.parametrize("part", finite_script.SPOILERS)
def test_such_a_step_changes_nothing(part: str, clip_norm: float) -> None:
    """An infinite loss with a finite gradient, and a gradient of NaN with a finite loss."""
    engine = an_engine(clip_norm)
    data = tiny.batch(engine.unwrapped, 2, 4, 3)
    engine.preallocate(data)
    before = weights(engine)
    finite_script.SPOILERS[part](engine)

    with pytest.raises(NotFinite) as raised:
        tiny.trained(engine, data, steps=1)

    assert raised.value.part == part
    assert are_equal(weights(engine), before)


@pytest.mark.parametrize("spoilt", [0, 1, 2])
def test_one_micro_batch_of_a_step_is_enough(spoilt: int) -> None:
    """The first, the middle or the last of three."""
    model = tiny.tiny("gpt2")
    with torch.no_grad():
        model.transformer.wpe.weight[5] = (
            3e38  # no weight is infinite; the sixth position's loss is
        )
    engine = tiny.engine(model)
    cut = [tiny.batch(model, 2, 6 if i == spoilt else 4, 3, seed=i) for i in range(3)]

    with pytest.raises(NotFinite) as raised:
        tiny.trained(engine, *cut, steps=1)

    assert raised.value.part is Part.LOSS


def test_a_dry_run_leaves_no_loss_behind() -> None:
    """What it computes is dropped, also where it is not finite."""
    engine = an_engine()
    data = tiny.batch(engine.unwrapped, 2, 4, 3)
    end = finite_script.spoil_loss(engine)
    engine.dry_run([data])
    end()

    norms = tiny.trained(engine, data, steps=1)

    assert math.isfinite(norms[0])


def test_all_ranks_stop_where_one_is_not_finite(pair: Path) -> None:
    """Over DDP and FSDP2, with the bad micro-batch on either: none waits for the other."""
    ranks = found_by("finite", pair)

    for rank, cases in enumerate(ranks):
        assert len(cases) == 8
        for part, spoilt, fsdp, raised in cases:
            assert raised == part, (rank, spoilt, fsdp)


def an_fp16_engine() -> Engine:
    """With the scaler of a GPU: `GradScaler` also runs on a CPU, and accelerate makes none there."""
    engine = an_engine()
    scaler = torch.amp.GradScaler("cpu")
    accelerator: Any = engine.accelerator
    accelerator.scaler = engine.optimizer.scaler = scaler
    accelerator.native_amp = True
    accelerator.state._mixed_precision = "fp16"
    engine.optimizer.__setstate__(engine.optimizer.__dict__)  # as a scaler from the start makes it
    return engine


@pytest.fixture
def fp16_engine() -> Iterator[Engine]:
    engine = an_fp16_engine()
    yield engine
    state: Any = engine.accelerator.state
    state._mixed_precision = "no"  # it is shared


def test_fp16_skips_steps_until_its_scale_is_at_one(fp16_engine: Engine) -> None:
    """16 skips halve it from 2^16 to 1; the next one stops, and no weight has changed."""
    data = tiny.batch(fp16_engine.unwrapped, 2, 4, 3)
    before = weights(fp16_engine)
    finite_script.spoil_gradient(fp16_engine)

    norms = tiny.trained(fp16_engine, data, steps=MOST_SKIPS)
    scale = fp16_engine.accelerator.scaler.get_scale()
    with pytest.raises(NotFinite) as raised:
        tiny.trained(fp16_engine, data, steps=1)

    assert not any(map(math.isfinite, norms))
    assert scale == 1.0
    assert raised.value.part is Part.SCALED_GRADIENT
    assert are_equal(weights(fp16_engine), before)


def test_fp16_counts_skips_in_a_row_alone(fp16_engine: Engine) -> None:
    """A step between that is taken begins the count anew."""
    data = tiny.batch(fp16_engine.unwrapped, 2, 4, 3)

    for _ in range(2):
        end = finite_script.spoil_gradient(fp16_engine)
        tiny.trained(fp16_engine, data, steps=MOST_SKIPS - 2)
        assert fp16_engine.skipped
        end()
        tiny.trained(fp16_engine, data, steps=1)
        assert not fp16_engine.skipped


def test_fp16_does_not_skip_a_loss_that_is_not_finite(fp16_engine: Engine) -> None:
    """A lower scale does not cure it."""
    finite_script.spoil_loss(fp16_engine)

    with pytest.raises(NotFinite) as raised:
        tiny.trained(fp16_engine, tiny.batch(fp16_engine.unwrapped, 2, 4, 3), steps=1)

    assert raised.value.part is Part.LOSS


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_not_finite_is_found(value: float) -> None:
    """In any place; whole numbers, empty tensors and the largest finite ones are fine."""
    good = {
        "none": torch.empty(0),
        "steps": torch.tensor([1, 2]),
        "large": torch.tensor([-3e38, 3e38]),
    }
    bad = torch.zeros(3, 4)
    bad[2, 1] = value

    assert first_not_finite(good) is None
    assert first_not_finite({**good, "bad": bad}) == "bad"
    assert not is_finite(bad)
