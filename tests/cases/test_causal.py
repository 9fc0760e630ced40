"""A causal model the whole way: tuned, trained, evaluated; `test_late_bumps` has a seq2seq one."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.commands import chatlm, steps

SHORT = ("--max-source-length", "24", "--max-target-length", "24")


@pytest.fixture
def causal(tmp_path: Path) -> Path:
    """A tiny Llama with the bundled tokenizer, as save_pretrained leaves it."""
    from trainer.model.loading import load_model

    tokenizer = load_model("chatlm-tiny", dropout=0.0, seed=0).encoder.tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, pad_token_id=0, bos_token_id=3, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_a_causal_model_is_tuned_and_then_trained(causal: Path, tmp_path: Path) -> None:
    """The same commands; the size that was found trains at the effective batch that was given."""
    tuned = chatlm(
        tmp_path, "autotune", "--device", "cpu", "--vram-limit", "2GiB", "--model", str(causal),
        "--max-batch", "4", "--effective-batch", "8", *SHORT, "--json", "--plain",
    )  # fmt: skip
    trained = chatlm(
        tmp_path, "train", "--device", "cpu", "--profile", "tuned", "--max-steps", "2", "--plain", "--generate-rows", "4",
        "--output-dir", "run",
    )  # fmt: skip

    assert tuned.returncode == 0, tuned.stderr
    assert trained.returncode == 0, trained.stderr
    document, records = json.loads(tuned.stdout), steps(tmp_path / "run")
    budget = document["devices"][0]["budget_bytes"]
    assert (document["micro_batch_size"], document["effective_batch_size"]) == (4, 8)
    assert [record["samples"] for record in records] == [8, 16]
    assert all(record["device_peak_bytes"] <= budget for record in records)
