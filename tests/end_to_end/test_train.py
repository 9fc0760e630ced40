"""`chatlm train` end to end: a tiny model, real worker processes, from a user's folder."""

import json
import resource
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from profiles.schema import parse
from tests.support.commands import output_of, plant_bombs, start, steps
from tests.support.runs import chosen, ended, notices, rows_file, run
from tests.support.shared import once
from trainer.config.options import TrainOptions
from trainer.config.resolve import resolve
from trainer.config.settings import TrainSettings
from trainer.data import tokenization
from trainer.events import Tokenising

FEW = ("--device", "cpu", "--plain", "--dropout", "0", "--seed", "5", "--profile", "small",
       "--generate-rows", "4")  # fmt: skip
"""The preset small: effective batch 16."""


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Those flags with a few rows to train on and fewer to evaluate on."""

    def write(folder: Path) -> None:
        rows_file(folder / "rows.jsonl", 400)
        rows_file(folder / "asked.jsonl", 8)

    folder = once(tmp_path_factory, "few", write)
    return (
        *FEW, "--data", str(folder / "rows.jsonl"), "--eval-data", str(folder / "asked.jsonl"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole_run(few: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a user who trained 12 steps, undisturbed, beside modules of our names."""

    def train(folder: Path) -> None:
        plant_bombs(folder)
        out = output_of(folder, "train", *few, "--max-steps", "12", "--micro-batch", "8", "--json")
        (folder / "out.json").write_text(out)

    return once(tmp_path_factory, "whole", train)


def test_the_json_document_is_all_of_stdout(whole_run: Path) -> None:
    """A script reads it without looking."""
    document = json.loads((whole_run / "out.json").read_text())

    assert document["schema"] == 1
    assert document["steps"] == 12
    assert document["samples"] == 12 * 16
    assert document["peak_bytes"] > 100 * 2**20
    assert Path(document["output_dir"]) == Path("model_save/sft_small")


def test_every_step_is_in_the_metrics(whole_run: Path) -> None:
    """One object a step, and the loss falls."""
    records = steps(whole_run / "model_save/sft_small")

    assert [record["step"] for record in records] == list(range(1, 13))
    assert records[-1]["samples"] == 192
    assert records[-1]["loss"] < records[0]["loss"] - 0.5
    assert {"grad_norm", "padding", "device_peak_bytes", "host_bytes"} <= set(records[0])


def test_a_text_log_lies_where_users_look(whole_run: Path) -> None:
    """`tail -f logs/chat_trainer_*.log`."""
    (log,) = (whole_run / "logs").glob("chat_trainer_*.log")

    assert "step" in log.read_text()


UNEVEN = """\
schema = 1
[batch]
micro_batch_size = 5
micro_batch_sizes = [5, 2]
gradient_accumulation_steps = 3
effective_batch_size = 16
eval_batch_size = 64
[fingerprint]
world_size = 2
"""
"""Of 16 samples the first process takes 11, the second 5, in three micro-batches each."""


def settings_of(profile: str, world_size: int, micro_batch: int | None = None) -> TrainSettings:
    """What a run with that profile is told."""
    return resolve(
        parse(tomllib.loads(profile), "p.toml"), TrainOptions(micro_batch=micro_batch),
        device="cpu", world_size=world_size,
    )  # fmt: skip


def test_each_process_is_told_its_own_size() -> None:
    """They survive the way to the workers, as JSON."""
    settings = settings_of(UNEVEN, 2)

    arrived = TrainSettings.from_json(json.loads(json.dumps(settings.as_json())))

    assert arrived == settings
    assert arrived.plan(2).sizes == (5, 2)
    assert arrived.micro_batch == 5
    assert arrived.eval_batch == 64


def test_the_users_own_micro_batch_is_for_every_forward_pass() -> None:
    """On all processes, and in evaluation: it is what is asked for when memory ran out."""
    settings = settings_of(UNEVEN, 2, micro_batch=4)

    assert settings.plan(2).sizes == (4, 4)
    assert settings.micro_batch_sizes is None
    assert settings.eval_batch is None


def test_measured_shares_are_of_the_model_that_was_tuned() -> None:
    """Another has other ones; a causal model has no two sides at all."""
    profile = parse(
        tomllib.loads(f'{UNEVEN}[memory]\nshares = [0.3, 0.6]\n[run]\nmodel = "t5"\n'), "p.toml"
    )

    shares = [
        resolve(profile, TrainOptions(model=model), device="cpu", world_size=2).memory_fractions
        for model in (None, "t5", "gpt2")
    ]

    assert shares == [(0.3, 0.6), (0.3, 0.6), None]


def test_the_cut_is_no_part_of_what_a_run_is() -> None:
    """It may be resumed on other devices, with other sizes."""
    two, one = settings_of(UNEVEN, 2), settings_of(UNEVEN, 1)

    assert one.plan(1).sizes == (2,)
    assert one.run_key() == two.run_key()


def test_an_evaluation_that_does_not_fit_fails_before_the_first_step(tmp_path: Path) -> None:
    """It would fail after an epoch: its largest batch has a dry run too, and this card refuses that."""
    rows, asked = rows_file(tmp_path / "rows.jsonl", 40), tmp_path / "long.jsonl"
    row = json.dumps({"prompt": "你好吗" * 80, "response": "很好" * 90})
    asked.write_text(f"{row}\n" * 512)
    told = chosen("small", tmp_path / "run", data=(str(rows),), eval_data=(str(asked),))
    workload = replace(told.workload, memory_limit=800 * 2**20)
    unlimited = resource.getrlimit(resource.RLIMIT_DATA)

    try:
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            run(replace(told, workload=workload, eval_batch=4096))
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, unlimited)

    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_an_interrupted_run_goes_on_where_it_was(
    few: tuple[str, ...], whole_run: Path, tmp_path: Path
) -> None:
    """Ctrl-C saves after the step and exits 130; the same run then ends as if undisturbed."""
    folder = tmp_path / "run"
    rows, asked = (few[few.index(name) + 1] for name in ("--data", "--eval-data"))
    process = start(
        tmp_path, "train", *few, "--max-steps", "12", "--micro-batch", "8", "--output-dir", "run"
    )
    while not (folder / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.02)

    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    interrupted_after = len(steps(folder))
    resumed = run(
        chosen("small", folder, data=(rows,), eval_data=(asked,), dropout=0.0, seed=5,
               generate_rows=4, max_steps=12, micro_batch=8)
    )  # fmt: skip

    assert process.returncode == 130, err
    assert 1 <= interrupted_after < 12
    assert f"resuming after step {interrupted_after} of 12" in notices(resumed)
    for own, other in zip(steps(folder), steps(whole_run / "model_save/sft_small"), strict=True):
        assert own["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert own["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)


def test_an_interrupted_tokenising_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends it at once with 130; a run of the same data has the first rows already, and trains."""
    monkeypatch.setenv("CHATLM_CACHE", str(tmp_path / "cache"))
    rows = ({"prompt": f"第 {i} 问，" + "问" * 40, "response": "答" * 40} for i in range(40_000))
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    arguments = ("train", *FEW, "--max-steps", "1", "--data", "rows.jsonl")

    process = start(tmp_path, *arguments)
    while not list((tmp_path / "cache").glob(".partial-*/stats.json")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    (partial,) = (tmp_path / "cache").glob(".partial-*")
    kept = json.loads((partial / "stats.json").read_text())
    monkeypatch.setattr(tokenization, "TELL_EVERY", 0.0)  # the rest may take less
    resumed = run(
        chosen("small", tmp_path / "run", data=(str(tmp_path / "rows.jsonl"),), max_steps=1)
    )

    assert process.returncode == 130, err
    assert 0 < kept["rows"] < 40_000
    first = next(event for event in resumed if isinstance(event, Tokenising))
    assert first.rows > kept["rows"]
    assert ended(resumed).result["steps"] == 1


def test_a_launcher_of_the_users_own_works_too(tmp_path: Path) -> None:
    """`accelerate launch -m chatlm.trainer`: no supervisor, a line of JSON for each thing that happens."""
    (tmp_path / "profiles").mkdir()  # as `chatlm autotune` leaves one
    rows_file(tmp_path / "rows.jsonl", 40)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu"]
    flags = ["--profile", "small", "--max-steps", "2", "--device", "cpu", "--data", "rows.jsonl"]

    done = subprocess.run(
        [*launch, "-m", "chatlm.trainer", *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr
    kinds = [json.loads(line)["type"] for line in done.stdout.splitlines() if line[:1] == "{"]
    assert kinds.count("step") == 2
    assert kinds[-1] == "done"
