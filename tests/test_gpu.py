"""The same promises on a real card: `pytest -m gpu` there; skipped everywhere else."""

import json
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import DeviceError
from autotune.nvml import Nvml
from tests.commands import chatlm, steps


def has_gpu() -> bool:
    """Whether a driver answers and torch can compute on its card."""
    try:
        with Nvml.open() as nvml:
            if not nvml.devices:
                return False
    except DeviceError:
        return False
    torch = pytest.importorskip("torch")
    return bool(torch.cuda.is_available())


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not has_gpu(), reason="no NVIDIA GPU with a CUDA build of torch"),
]
ONE = ("--device", "cuda", "--num-processes", "1")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a tuned profile, and what the tuning printed."""
    folder = tmp_path_factory.mktemp("gpu")
    done = chatlm(
        folder, "autotune", "--target-vram", "0.6", "--vram-limit", "8GiB", "--model",
        "chatlm-0.2b", "--json", *ONE, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_the_answer_holds_the_budget_on_the_card(tuned: tuple[Path, dict[str, Any]]) -> None:
    """And the next larger size that was tried did not."""
    _, document = tuned
    (device,) = document["devices"]

    larger = [t for t in document["trials"] if t["size"] > document["micro_batch_size"]]

    assert device["peak_bytes"] <= device["budget_bytes"]
    assert all(trial["verdict"] != "fits" for trial in larger)


def test_training_peaks_where_the_probe_did(tuned: tuple[Path, dict[str, Any]]) -> None:
    """Within the budget, and within 8 % of the probe."""
    folder, document = tuned
    (device,) = document["devices"]

    done = chatlm(
        folder, "train", "--profile", "tuned", "--max-steps", "20", "--json", *ONE, timeout=300
    )

    assert done.returncode == 0, done.stderr
    peak = json.loads(done.stdout)["peak_bytes"]
    assert peak <= device["budget_bytes"]
    assert peak == pytest.approx(device["peak_bytes"], rel=0.08)


def test_every_cut_gives_the_same_losses_on_the_card(tuned: tuple[Path, dict[str, Any]]) -> None:
    """fp32, dropout 0: micro-batch 3 and 8, to 1e-4."""
    folder, _ = tuned
    flags = ("--profile", "small", "--max-steps", "8", "--dropout", "0", "--precision", "fp32")

    for size in ("3", "8"):
        done = chatlm(
            folder, "train", *flags, "--micro-batch", size, "--output-dir", size, *ONE, timeout=300
        )
        assert done.returncode == 0, done.stderr

    for own, other in zip(steps(folder / "3"), steps(folder / "8"), strict=True):
        assert own["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert own["grad_norm"] == pytest.approx(other["grad_norm"], abs=1e-4)
