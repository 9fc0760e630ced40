"""FSDP2 on gloo processes: the same steps as one process, sharded memory, checkpoints that know no shards."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from autotune.choices import DeviceKind
from bench.small import save_small
from tests.support import sharded_script as script
from tests.support.commands import start, steps
from tests.support.processes import deadline, wait_until
from tests.support.runs import chosen, notices, rows_file, run
from trainer.batching.step_loader import zero_weight_batch
from trainer.checkpointing.checkpoint import verify
from trainer.evaluation.evaluator import evaluate


@pytest.fixture(autouse=True)
def nothing_hangs() -> Iterator[None]:
    with deadline(300):
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows_file(tmp_path_factory.mktemp("rows") / "rows.jsonl", 24)


@pytest.fixture(scope="module", params=script.KINDS)
def both(
    request: pytest.FixtureRequest, rows: Path, pair: Path
) -> tuple[list[dict[str, Any]], dict[str, Any], Path]:
    """Figures of two processes, of one that took all steps, and the folder of the two."""
    folder = pair / request.param
    two = [json.loads((folder / f"figures-{rank}.json").read_text()) for rank in (0, 1)]
    return two, alone(request.param, rows), folder


def alone(kind: str, rows: Path) -> dict[str, Any]:
    """The same steps in this process."""
    loaded = script.load(kind)
    collator = script.collate(loaded, str(rows))
    engine = script.build(loaded, collator, fsdp=True)
    assert not engine.is_sharded  # over one process there is nothing to share out
    found: list[tuple[float, float]] = []
    evaluations = []
    for first in range(0, script.STEPS, 2):
        found += script.take_steps(engine, collator, range(first, first + 2))
        evaluations.append(evaluate(engine, collator, size=8))
    weights = {name: p.detach().clone() for name, p in engine.unwrapped.named_parameters()}
    return {"steps": found, "evaluations": evaluations, "weights": weights}


def test_sharded_steps_are_those_of_one_process(both: Any) -> None:
    """Loss and gradient norm to 1e-6, clipped, with an empty micro-batch, sharded, in DDP, sharded."""
    two, one, _ = both

    for figures in two:
        assert figures["evaluations"] == pytest.approx(one["evaluations"], rel=1e-6)
        for own, other in zip(figures["steps"], one["steps"], strict=True):
            assert own == pytest.approx(other, rel=1e-6)
    assert all(norm > script.CLIP for _, norm in one["steps"])


def test_each_process_holds_half(both: Any) -> None:
    """Weights, gradients and Adam's moments, against all of them in DDP."""
    two, _, _ = both

    for figures in two:
        sharded, whole, again = figures["held"]
        assert sharded == again
        assert sharded == pytest.approx(whole / 2, rel=0.01)


def test_a_checkpoint_knows_no_shards(both: Any) -> None:
    """Full tensors, checked; they are the final model's and the one process's."""
    _, one, folder = both

    (kind,) = json.loads((folder / "config.json").read_text())["architectures"]
    last = load_file(folder / "checkpoint-6" / "model.safetensors")
    # transformers may write other names than a model has: a tensor for each expert
    final = dict(getattr(transformers, kind).from_pretrained(folder).named_parameters())

    assert verify(folder / "checkpoint-2")["step"] == 2
    assert final.keys() == last.keys() == one["weights"].keys()
    for name, weight in one["weights"].items():
        assert torch.equal(final[name], last[name])
        assert torch.allclose(final[name], weight, rtol=1e-7, atol=1e-9)


def test_the_exported_model_is_transformers_own(both: Any) -> None:
    """Its class is named in the configuration as it was before sharding."""
    _, _, folder = both

    (kind,) = json.loads((folder / "config.json").read_text())["architectures"]

    made = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)

    report = made[1]
    assert not report["missing_keys"] | report["unexpected_keys"]


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs"),
            ],
        ),
    ],
)
def test_a_sharded_run_goes_on_unsharded_and_ends_as_one_process(
    device: DeviceKind, rows: Path, tmp_path: Path
) -> None:
    """`chatlm train --fsdp` on two processes; Ctrl-C; then one process."""
    options: dict[str, Any] = {
        "model": str(save_small("t5", tmp_path / "model")), "learning_rate": 1e-3, "precision": "fp32", "max_steps": 8, "dropout": 0.0, "seed": 5,
    }  # fmt: skip
    here: dict[str, Any] = {"data": (str(rows),), "device": device, **options}
    run(chosen("small", tmp_path / "whole", micro_batch=16, **here))
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    process = start(
        tmp_path, "train", "--device", device, "--plain", "--profile", "small", "--data", str(rows),
        *flags, "--output-dir", "parts", "--num-processes", "2", "--micro-batch", "3", "--fsdp",
    )  # fmt: skip
    assert wait_until((tmp_path / "parts" / "metrics.jsonl").exists)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    said = run(chosen("small", tmp_path / "parts", micro_batch=5, **here))

    assert process.returncode == 130, err
    assert "sharded over 2 processes" in out
    assert any("resuming after step" in text for text in notices(said))
    for own, other in zip(steps(tmp_path / "parts"), steps(tmp_path / "whole"), strict=True):
        assert own["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert own["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
    first, second = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")
    )
    assert all(torch.allclose(second[name], first[name], rtol=1e-5, atol=1e-5) for name in first)


@pytest.mark.parametrize("kind", script.KINDS)
def test_an_empty_micro_batch_adds_nothing(kind: str, rows: Path) -> None:
    """Neither to the loss nor to a gradient, not even an undefined number."""
    loaded = script.load(kind)
    collator = script.collate(loaded, str(rows))
    engine = script.build(loaded, collator, fsdp=False)
    batch = collator.batch([1, 2])
    empty = zero_weight_batch(batch)

    engine.forward_backward([batch], target_tokens=batch.target_tokens)
    before = [p.grad.clone() for p in engine.unwrapped.parameters() if p.grad is not None]
    loss = engine.forward_backward([empty], target_tokens=batch.target_tokens)

    after = [p.grad for p in engine.unwrapped.parameters() if p.grad is not None]
    assert loss.item() == 0
    assert (empty.samples, empty.tokens, empty.target_tokens) == (0, 0, 0)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
