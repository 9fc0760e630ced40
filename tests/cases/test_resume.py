"""A run that was interrupted and goes on: what it is, what it takes, and that nothing is tuned anew."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import transformers

import profiles
from autotune.devices.host import HostMeter
from autotune.devices.selection import open_devices
from autotune.events import ProbeStarted
from tests.support.commands import chatlm, start, steps
from tests.support.processes import deadline, wait_until
from trainer.config.options import TrainOptions
from trainer.config.resolve import resolve
from trainer.events import StepEnded, TrainingEnded, TrainingStarted
from trainer.model.loading import load_model
from trainer.supervisor.job import TrainJob
from trainer.supervisor.training import run_training

STEPS = 6
STOPPED = 2
"""The step that is under way when the run is interrupted, or the one after."""


@pytest.fixture(autouse=True)
def nothing_hangs() -> Iterator[None]:
    with deadline(180):
        yield


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a tuning found on this machine: micro-batch 8 of an effective batch of 16."""
    folder = tmp_path_factory.mktemp("tuned")
    done = chatlm(
        folder, "autotune", "--device", "cpu", "--vram-limit", "1GiB", "--max-batch", "8",
        "--effective-batch", "16", "--max-source-length", "32", "--max-target-length", "32",
        "--plain",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "profiles" / "tuned.toml"


def run(
    profile: Path,
    output: Path,
    emit: Callable[[object], None],
    *,
    micro_batch: int | None = None,
) -> TrainingEnded:
    """Trains with the profile, in worker processes as `chatlm train` does."""
    host = HostMeter()
    found = profiles.load(str(profile))
    with open_devices(
        "cpu", num_processes=1, vram_limit=found.memory.vram_limit_bytes, host=host
    ) as devices:
        settings = resolve(
            found,
            TrainOptions(
                profile=str(profile), generate_rows=0,
                micro_batch=micro_batch, max_steps=STEPS, output_dir=str(output), dropout=0.0, seed=7
            ),
            device="cpu", world_size=1,
        )  # fmt: skip
        job = TrainJob(
            settings=settings, profile=found, devices=devices, host=host, emit=emit,
            log_path=output.parent / "log",
        )  # fmt: skip
        return run_training(job)


def interrupted_and_resumed(
    profile: Path, output: Path, *, micro_batch: int | None = None
) -> list[object]:
    """The events of the second part, which may be cut differently."""

    def interrupt(event: object) -> None:
        if isinstance(event, StepEnded) and event.record["step"] == STOPPED:
            signal.raise_signal(signal.SIGINT)

    events: list[object] = []
    first = run(profile, output, interrupt)
    assert first.interrupted
    run(profile, output, events.append, micro_batch=micro_batch)
    return events


def test_a_resume_searches_nothing_and_counts_on_whatever_its_cut(
    profile: Path, tmp_path: Path
) -> None:
    """Interrupted at micro-batch 8, resumed at 3: the same samples in the same steps."""
    whole: list[object] = []
    run(profile, tmp_path / "whole", whole.append)
    events = interrupted_and_resumed(profile, tmp_path / "parts", micro_batch=3)

    (started,) = (event for event in events if isinstance(event, TrainingStarted))
    parts, reference = steps(tmp_path / "parts"), steps(tmp_path / "whole")
    assert [event for event in (*whole, *events) if isinstance(event, ProbeStarted)] == []
    assert (started.steps, started.effective_batch, started.micro_batch) == (STEPS, 16, 3)
    assert started.first_step > STOPPED
    again = slice(started.first_step - 1, None)
    assert sum(p["micro_batches"] for p in parts[again]) > sum(
        one["micro_batches"] for one in reference[again]
    )
    for part, one in zip(parts, reference, strict=True):
        assert (part["step"], part["samples"]) == (one["step"], one["samples"])
        assert part["tokens"] == one["tokens"]
        assert part["loss"] == pytest.approx(one["loss"], abs=1e-4)


def test_where_activations_set_the_peak_a_resume_takes_no_more_than_a_fresh_start(
    profile: Path, tmp_path: Path
) -> None:
    """What it reads of the checkpoint is gone before the first step; the budget holds it."""
    interrupted_and_resumed(profile, tmp_path / "run")

    peaks = [record["device_peak_bytes"] for record in steps(tmp_path / "run")]
    fresh, resumed = max(peaks[:STOPPED]), max(peaks[STOPPED + 1 :])
    budget = profiles.load(str(profile)).memory.budget_bytes
    assert budget is not None
    assert resumed == pytest.approx(fresh, rel=0.05)
    assert resumed <= budget


def test_where_weights_set_the_peak_a_resume_takes_no_more_than_a_fresh_start(
    tmp_path: Path,
) -> None:
    """The checkpoint must not stand beside what it replaces."""
    tokenizer = load_model("chatlm-tiny", dropout=0.0, seed=0).encoder.tokenizer
    config = transformers.T5Config(  # type: ignore[call-arg]
        vocab_size=len(tokenizer), d_model=512, d_kv=64, d_ff=2048, num_heads=8, num_layers=4,
        num_decoder_layers=4, dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    train = (
        "train", "--device", "cpu", "--plain", "--generate-rows", "0", "--profile", "small", "--model", "model",
        "--micro-batch", "1", "--max-steps", "8", "--output-dir", "run",
    )  # fmt: skip

    process = start(tmp_path, *train)
    wait_until((tmp_path / "run" / "metrics.jsonl").exists)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    fresh = max(record["device_peak_bytes"] for record in steps(tmp_path / "run"))
    resumed = chatlm(tmp_path, *train)
    assert resumed.returncode == 0, resumed.stderr

    peak = max(record["device_peak_bytes"] for record in steps(tmp_path / "run"))
    assert peak <= 1.05 * fresh
