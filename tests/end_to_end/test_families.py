"""`chatlm train` on models of other families and with other ways of training, end to end."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from tests.support.commands import chatlm, start, steps
from tests.support.tiny import save

PROFILE = """\
schema = 1
[batch]
micro_batch_size = 8
gradient_accumulation_steps = 2
effective_batch_size = 16
[run]
max_source_length = 32
max_target_length = 32
{run}
"""
FEW = ("--device", "cpu", "--plain", "--seed", "5", "--max-steps", "6", "--generate-rows", "4")


def train(folder: Path, model: Path | str, run: str, *more: str) -> Any:
    """A run in that folder with those keys in the profile's `[run]`; it must succeed."""
    (folder / "p.toml").write_text(PROFILE.format(run=run))
    done = chatlm(folder, "train", *FEW, "--profile", "p.toml", "--model", str(model), *more)
    assert done.returncode == 0, done.stderr
    return done


def test_a_llama_of_the_users_own_is_trained_whole(tmp_path: Path) -> None:
    """By Adafactor on noisy embeddings with checkpointed activations, from a local folder."""
    save("llama", tmp_path / "llama")
    run = 'optimizer = "adafactor"\nneftune_alpha = 5.0\ngradient_checkpointing = true'

    done = train(
        tmp_path, tmp_path / "llama", run, "--learning-rate", "1e-2", "--output-dir", "run"
    )

    records = steps(tmp_path / "run")
    model: Any = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "run")
    answer = model.generate(
        **tokenizer("你好", return_tensors="pt"), min_new_tokens=3, max_new_tokens=3
    )
    assert "parameters (" not in done.stdout
    assert records[-1]["loss"] < records[0]["loss"]
    assert not any(record["skipped"] for record in records)
    assert answer.shape[1] > 3
    assert not (tmp_path / "run/adapter").exists()


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a user who trained adapters for a T5, undisturbed; and what was printed."""
    folder = tmp_path_factory.mktemp("lora")
    save("t5", folder / "t5")
    done = train(folder, folder / "t5", "lora_rank = 4", "--output-dir", "run")
    return folder, done.stdout


def test_the_export_of_a_lora_run_loads_by_transformers_alone(adapted: tuple[Path, str]) -> None:
    """Merged: every weight is where the base's is, and those that have adapters differ."""
    folder, printed = adapted
    kind: Any = hf.AutoModelForSeq2SeqLM

    model, report = kind.from_pretrained(folder / "run", output_loading_info=True)

    base = kind.from_pretrained(folder / "t5").state_dict()
    moved = {n for n, w in model.state_dict().items() if not torch.equal(w, base[n])}
    config = json.loads((folder / "run/adapter/adapter_config.json").read_text())
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert moved
    assert all(name.endswith((".q.weight", ".v.weight")) for name in moved)
    assert "training 3,072 of" in printed
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 8, "LORA")


def test_a_lora_run_goes_on_from_its_checkpoint(adapted: tuple[Path, str], tmp_path: Path) -> None:
    """Interrupted after its second step or a later one, it ends with the undisturbed run's weights."""
    folder, _ = adapted
    (tmp_path / "p.toml").write_text(PROFILE.format(run="lora_rank = 4"))
    flags = ("--output-dir", "run", "--checkpoint-every", "1", "--model", str(folder / "t5"))
    command = ("train", *FEW, "--profile", "p.toml", *flags)

    process = start(tmp_path, *command)
    while not list((tmp_path / "run").glob("checkpoint-[2345]")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    again = chatlm(tmp_path, *command)

    assert again.returncode == 0, again.stderr
    assert process.returncode == 130
    assert "resuming after step" in again.stdout
    merged, undisturbed = (load_file(f / "run/model.safetensors") for f in (tmp_path, folder))
    assert merged.keys() == undisturbed.keys()
    for name in merged:
        assert torch.allclose(merged[name], undisturbed[name], atol=1e-6), name


def test_a_compiled_run_is_the_run_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and norms of each step to 1e-5, on two processes; traced, not by inductor (a minute here)."""
    monkeypatch.setitem(os.environ, "CHATLM_COMPILE_BACKEND", "eager")
    save("llama", tmp_path / "llama")

    train(tmp_path, tmp_path / "llama", "", "--output-dir", "plain")
    train(tmp_path, tmp_path / "llama", "compile = true", "--output-dir", "fast",
          "--num-processes", "2")  # fmt: skip

    pairs = list(zip(steps(tmp_path / "fast"), steps(tmp_path / "plain"), strict=True))
    assert len(pairs) == 6
    for fast, plain in pairs:
        assert fast["loss"] == pytest.approx(plain["loss"], rel=1e-5)
        assert fast["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)


def test_a_choice_that_the_model_cannot_have_ends_without_a_traceback(tmp_path: Path) -> None:
    """An encoder that a Llama does not have: exit 1, before the first step."""
    save("llama", tmp_path / "llama")
    (tmp_path / "p.toml").write_text(PROFILE.format(run='freeze = "encoder"'))

    done = chatlm(
        tmp_path, "train", *FEW, "--profile", "p.toml", "--model", "llama", "--output-dir", "run"
    )

    assert done.returncode == 1
    assert "--freeze encoder is for models with an encoder, and llama has none" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run/metrics.jsonl").exists()
