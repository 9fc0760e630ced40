"""The same promises on a real card: `pytest -m gpu` there; skipped everywhere else."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from autotune.choices import DeviceKind
from autotune.devices.allocator import same_device
from autotune.devices.host import HostMeter
from autotune.devices.nvml import Nvml, visible
from autotune.devices.selection import open_devices
from autotune.errors import DeviceError
from autotune.tuning.extras import tune_evaluation
from autotune.tuning.prober import Limits, WorkerProber, WorkloadSpec
from autotune.verdict import Verdict
from autotune.workers.launch import memory_environment
from tests.support.commands import output_of, steps
from tests.support.probers import peak_of
from trainer.config.settings import WorkloadSettings

MIB = 2**20


def has_gpu() -> bool:
    """Whether a driver answers and torch can compute on its card."""
    try:
        with Nvml.open() as nvml:
            if not nvml.devices:
                return False
    except DeviceError:
        return False
    return bool(torch.cuda.is_available())


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not has_gpu(), reason="no NVIDIA GPU with a CUDA build of torch"),
]
DEVICE: DeviceKind = "cuda"
MODEL = "chatlm-0.2b"
ONE = ("--device", DEVICE, "--num-processes", "1")
TUNING = ("autotune", "--target-vram", "0.6", "--vram-limit", "8GiB", "--model", MODEL, *ONE)
ABSURD = 4096
"""Sequences; hundreds of GiB with that model."""
DEVICES_OF_TORCH = """
import torch
from autotune.devices.allocator import CudaMemory
for index in range(torch.cuda.device_count()):
    torch.cuda.set_device(index)
    print(CudaMemory().device, torch.cuda.get_device_properties(index).total_memory)
"""


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a tuned profile, and what the tuning printed."""
    folder = tmp_path_factory.mktemp("gpu")
    return folder, json.loads(output_of(folder, *TUNING, "--json", timeout=300))


@contextmanager
def prober_on_the_card(folder: Path) -> Iterator[WorkerProber]:
    """A prober of the trainer's own step, on the card as 8 GiB."""
    host = HostMeter()
    workload = WorkloadSettings(model=MODEL, device=DEVICE)
    with (
        open_devices(DEVICE, num_processes=1, vram_limit=8192 * MIB, host=host) as devices,
        WorkerProber(
            WorkloadSpec(
                path="trainer.workload:build",
                settings={**workload.as_json(), "effective": 32, "effective_fixed": False},
            ),
            group=devices.group,
            host=host,
            limits=Limits(target=0.6, target_ram=0.9),
            emit=lambda event: None,
            log_path=folder / "log",
        ) as prober,
    ):
        yield prober


def test_torch_and_the_driver_mean_the_same_devices() -> None:
    """By UUID and in CUDA's order, MIG slices included; and they agree on how large each is."""
    done = subprocess.run(
        [sys.executable, "-c", DEVICES_OF_TORCH],
        env={**os.environ, **memory_environment("cuda")},
        capture_output=True,
        text=True,
        check=True,
    )
    with Nvml.open() as nvml:
        readings = [device.read() for device in visible(nvml, os.environ)]

    found = [line.split() for line in done.stdout.splitlines()]

    assert len(found) == len(readings)
    for (uuid, total), reading in zip(found, readings, strict=True):
        assert same_device(uuid, reading.device)
        assert int(total) == pytest.approx(reading.total, rel=0.05)


def test_context_cache_and_tensors_are_told_apart(tuned: tuple[Path, dict[str, Any]]) -> None:
    """Each holds the next, and a context is hundreds of MiB, neither nothing nor a model."""
    _, document = tuned

    (device,) = document["devices"]

    assert 100 * MIB < device["context_bytes"] < 2048 * MIB
    assert 1024 * MIB < device["allocated_bytes"] <= device["reserved_bytes"]
    assert device["context_bytes"] + device["reserved_bytes"] <= device["peak_bytes"]


def test_a_second_tuning_takes_one_probe(tuned: tuple[Path, dict[str, Any]]) -> None:
    """And gives the same answer: it starts from the profile of the very same."""
    folder, document = tuned

    again = json.loads(output_of(folder, *TUNING, "--json", timeout=300))

    assert [trial["size"] for trial in again["trials"]] == [document["micro_batch_size"]]


def test_an_absurd_size_ends_at_our_own_limit_and_the_next_probe_works(tmp_path: Path) -> None:
    """Our hard limit, far below the card's: no tenant is pushed out of memory."""
    with prober_on_the_card(tmp_path) as prober:
        before = prober.probe(1)
        absurd = prober.probe(ABSURD)
        after = prober.probe(1)

    assert absurd.verdict is Verdict.OVER
    assert "the hard limit" in (absurd.reason or "")
    assert (before.verdict, after.verdict) == (Verdict.FITS, Verdict.FITS)
    assert after.peak == pytest.approx(peak_of(before), rel=0.03)


def test_the_evaluation_batch_holds_the_budget(tmp_path: Path) -> None:
    """Forward alone, beside all that training keeps resident."""
    with prober_on_the_card(tmp_path) as prober:
        trained = prober.probe(4)
        size = tune_evaluation(prober, trained)
        evaluated = prober.probe(size, "evaluate")

    assert size >= trained.size
    assert evaluated.verdict is Verdict.FITS
    assert peak_of(evaluated) <= prober.budgets[0].budget


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

    out = output_of(
        folder, "train", "--profile", "tuned", "--max-steps", "20", "--json", *ONE, timeout=300
    )

    peak = json.loads(out)["peak_bytes"]
    assert peak <= device["budget_bytes"]
    assert peak == pytest.approx(device["peak_bytes"], rel=0.08)


def test_every_cut_gives_the_same_losses_on_the_card(tuned: tuple[Path, dict[str, Any]]) -> None:
    """fp32, dropout 0: micro-batch 3 and 8, to 1e-4."""
    folder, _ = tuned
    flags = ("--profile", "small", "--max-steps", "8", "--dropout", "0", "--precision", "fp32")

    for size in ("3", "8"):
        output_of(
            folder, "train", *flags, "--micro-batch", size, "--output-dir", size, *ONE, timeout=300
        )

    for own, other in zip(steps(folder / "3"), steps(folder / "8"), strict=True):
        assert own["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert own["grad_norm"] == pytest.approx(other["grad_norm"], abs=1e-4)
