"""`torch.compile`: a step is the same, and graphs stay few however many shapes it meets."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version

from autotune.errors import UsageError
from tests.support.tiny import batch, engine, tiny
from trainer.config.settings import WorkloadSettings
from trainer.model.accelerator import make_accelerator
from trainer.model.compilation import (
    BACKEND,
    compiled,
    graphs,
    keep_code_private,
    padded,
)
from trainer.model.engine import Engine

SHAPES = [
    (1, 64, 64), (8, 64, 64), (4, 17, 9), (16, 16, 16), (1, 33, 7), (6, 1, 1), (24, 24, 24),
]  # fmt: skip
"""(rows, source, target): single rows, sides as long as each other and as there are rows, single tokens."""


BREAKS_T5 = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.13"),
    reason="torch below 2.13 breaks T5's graph at the copy.deepcopy in get_text_config",
)


@pytest.fixture(autouse=True)
def _traced_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are traced as for inductor and run as they are: in seconds, where inductor takes a minute."""
    monkeypatch.setenv(BACKEND, "eager")
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)  # 10^5 lines
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("own", [None, "/fast/code"])
def test_compiled_code_lies_where_no_other_user_can_put_any(
    own: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own folder in /tmp has a name that all know; a folder that the user chose stays."""
    monkeypatch.setenv("CHATLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", own or "")
    if own is None:
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")

    keep_code_private()
    made = tmp_path / "cache" / "inductor"

    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == (own or str(made))
    if own is None:
        assert made.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("family", "values"),
    [
        pytest.param("t5", {}, marks=BREAKS_T5),
        ("llama", {"lora_rank": 4}),
        ("qwen2", {"gradient_checkpointing": True}),
    ],
)
def test_two_graphs_serve_every_shape_and_change_no_step(
    family: str, values: dict[str, Any]
) -> None:
    """Seven shapes: loss and gradient norm to 1e-5; one graph for single rows, one for all others."""
    model = tiny(family, layers=1)  # each is traced
    plain, fast = engine(model, **values), engine(model, compile=True, **values)
    before = graphs()

    for rows, source, target in SHAPES:
        data = batch(model, rows, source, target)
        losses, norms = [], []
        for own in (plain, fast):
            loss = own.forward_backward([data], target_tokens=data.target_tokens)
            losses.append(loss.item())
            norms.append(own.optimizer_step(1e-4))

        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        assert norms[1] == pytest.approx(norms[0], rel=1e-4)

    assert 1 <= graphs() - before <= 2
    assert not torch._dynamo.utils.counters["recompile_limit"]


def test_an_evaluation_makes_no_graph() -> None:
    """It runs as if nothing were compiled; so does generation, whose shapes grow with each token."""
    own = engine(tiny("llama", layers=1), compile=True)
    data = batch(own.unwrapped, 4, 12, 8)
    before = graphs()

    with own.evaluating():
        own.summed_loss(data)
        model: Any = own.unwrapped
        model.generate(**data.inputs, max_new_tokens=2)

    assert graphs() == before


def test_a_compiled_step_has_noise_too() -> None:
    """NEFTune's hooks are traced: another draw gives another loss."""
    own = engine(tiny("llama", layers=1), compile=True, neftune_alpha=5.0)
    data = batch(own.unwrapped, 4, 12, 8)

    losses = {own.forward_backward([data], target_tokens=1).item() for _ in range(3)}

    assert len(losses) == 3


def test_lengths_are_padded_to_eight_and_no_further_than_the_model_reads() -> None:
    """A GPT-2 of 20 positions has no place for 24; what is added is masked and not learnt."""
    data = batch(tiny("gpt2"), 2, 17, 17)

    wide, narrow = padded(data, None), padded(data, 20)

    assert wide.inputs["input_ids"].shape == wide.labels.shape == (2, 24)
    assert narrow.inputs["input_ids"].shape == narrow.labels.shape == (2, 20)
    assert wide.inputs["attention_mask"].sum() == data.inputs["attention_mask"].sum()
    assert (wide.labels != -100).sum() == data.target_tokens


def test_a_missing_compiler_is_said_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor writes C++ and would fail in the middle of it."""
    monkeypatch.setenv(BACKEND, "inductor")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)

    with pytest.raises(UsageError) as caught:
        compiled(tiny("t5"))

    assert str(caught.value) == (
        "--compile needs a C++ compiler; install g++, or leave --compile out"
    )


def test_a_launchers_wish_to_compile_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch` sets the variable from a user's configuration; ours is the setting."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    model, settings = tiny("t5"), WorkloadSettings()

    own = Engine(make_accelerator(settings), model, settings)

    assert own.model is model
