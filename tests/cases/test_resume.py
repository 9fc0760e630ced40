"""A run that is resumed: what it is, what it takes, and that nothing is tuned anew."""

import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

import profiles
from autotune.devices.host import HostMeter
from autotune.devices.selection import open_devices
from autotune.errors import OutputError
from autotune.events import ProbeStarted
from tests.support import runs
from tests.support.commands import output_of, start, steps
from tests.support.processes import each_within, wait_until
from tests.support.runs import chosen, rows_file
from trainer.events import StepEnded, TrainingEnded, TrainingStarted
from trainer.pretrained.loading import load_model
from trainer.reading.readers import bundled
from trainer.supervisor.job import TrainJob
from trainer.supervisor.training import run_training

STEPS = 6
STOPPED = 2
"""The step that is under way when the run is interrupted, or the one after."""
nothing_hangs = each_within(300)


PROFILE = f"""\
schema = 1
[batch]
micro_batch_size = 8
gradient_accumulation_steps = 2
effective_batch_size = 16
[run]
max_source_length = 32
max_target_length = 32
[memory]
vram_limit_bytes = {2**30}
"""
CHOSEN: dict[str, Any] = {
    "data": (bundled("train"),), "max_steps": STEPS, "dropout": 0.0, "seed": 7,
}  # fmt: skip


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a tuning leaves it: micro-batch 8 of an effective batch of 16."""
    file = tmp_path_factory.mktemp("tuned") / "tuned.toml"
    file.write_text(PROFILE)
    return file


@pytest.fixture(scope="module")
def stopped(profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that Ctrl-C ended after its second step or the next."""

    def interrupt(event: object) -> None:
        if isinstance(event, StepEnded) and event.record["step"] == STOPPED:
            signal.raise_signal(signal.SIGINT)

    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert run(profile, folder, interrupt).interrupted
    return folder


def run(profile: Path, output: Path, emit: Callable[[object], None]) -> TrainingEnded:
    """Trains with the profile, in worker processes as `chatlm train` does."""
    host = HostMeter()
    found = profiles.load(str(profile))
    with open_devices(
        "cpu", num_processes=1, vram_limit=found.memory.vram_limit_bytes, host=host
    ) as devices:
        settings = chosen(profile, output, **CHOSEN)
        job = TrainJob(
            settings=settings, profile=found, devices=devices, host=host, emit=emit,
            log_path=output.parent / "log",
        )  # fmt: skip
        return run_training(job)


def test_a_resume_counts_on_whatever_its_cut(profile: Path, stopped: Path, tmp_path: Path) -> None:
    """Interrupted at micro-batch 8, resumed at 3: the same samples in the same steps."""
    shutil.copytree(stopped, tmp_path / "parts")

    runs.run(chosen(profile, tmp_path / "whole", **CHOSEN))
    events = runs.run(chosen(profile, tmp_path / "parts", micro_batch=3, **CHOSEN))

    (started,) = (event for event in events if isinstance(event, TrainingStarted))
    parts, reference = steps(tmp_path / "parts"), steps(tmp_path / "whole")
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


def test_a_resume_on_other_rows_is_refused_before_a_step(tmp_path: Path) -> None:
    """Rows that were appended would change the order of all; the same rows as before go on."""
    rows, folder = rows_file(tmp_path / "rows.jsonl", 40), tmp_path / "run"
    of_run = runs.settings(rows, folder)
    runs.run(of_run, stop_after=3)
    before = (folder / "run.json").read_text()
    moved = Path(shutil.copy(rows, tmp_path / "moved.jsonl"))
    rows.write_text(rows.read_text() + rows.read_text())

    with pytest.raises(OutputError) as caught:
        runs.run(of_run)
    ended = runs.ended(runs.run(runs.settings(moved, folder)))

    assert re.fullmatch(
        rf"the data of the run in {folder} has changed: 40 rows of [\d,]+ tokens, now 80 rows of [\d,]+ "
        "tokens; put the data back to resume, use --fresh to begin anew, or another --output-dir",
        str(caught.value),
    )
    assert '"finished": false' in before
    assert ended.result["steps"] == of_run.max_steps


def test_where_activations_set_the_peak_a_resume_takes_no_more_than_a_fresh_start(
    profile: Path, stopped: Path, tmp_path: Path
) -> None:
    """What it reads of the checkpoint is gone before the first step; the card holds it. Nothing is tuned anew."""
    events: list[object] = []
    shutil.copytree(stopped, tmp_path / "run")

    run(profile, tmp_path / "run", events.append)

    assert not [event for event in events if isinstance(event, ProbeStarted)]
    peaks = [record["device_peak_bytes"] for record in steps(tmp_path / "run")]
    assert max(peaks[STOPPED + 1 :]) == pytest.approx(max(peaks[:STOPPED]), rel=0.05)
    assert max(peaks[STOPPED + 1 :]) <= 2**30


def test_where_weights_set_the_peak_a_resume_takes_no_more_than_a_fresh_start(
    tmp_path: Path,
) -> None:
    """The checkpoint must not stand beside what it replaces."""
    tokenizer = load_model("chatlm-tiny", dropout=0.0, seed=0).encoder.tokenizer
    config = transformers.T5Config(  # type: ignore[call-arg]
        vocab_size=len(tokenizer), d_model=512, d_kv=64, d_ff=2048, num_heads=8, num_layers=2,
        num_decoder_layers=2, dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    few = tmp_path / "few.toml"
    few.write_text(PROFILE.replace("= 16", "= 2").replace("= 8", "= 1").split("[memory]")[0])
    rows = rows_file(tmp_path / "rows.jsonl", 64)
    train = (
        "train", "--device", "cpu", "--plain", "--profile", str(few), "--model", "model", "--data", str(rows),
        "--max-steps", "8", "--output-dir", "run",
    )  # fmt: skip

    process = start(tmp_path, *train)
    wait_until((tmp_path / "run" / "metrics.jsonl").exists)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    fresh = max(record["device_peak_bytes"] for record in steps(tmp_path / "run"))
    output_of(tmp_path, *train)

    peak = max(record["device_peak_bytes"] for record in steps(tmp_path / "run"))
    assert peak <= 1.05 * fresh
