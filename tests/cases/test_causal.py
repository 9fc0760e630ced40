"""A causal model the whole way: tuned, trained, evaluated; `end_to_end/test_autotune_emulated` has a seq2seq one."""

import json
from pathlib import Path

from tests.support.commands import output_of, steps
from tests.support.tiny import save

SHORT = ("--max-source-length", "24", "--max-target-length", "24")


def test_a_causal_model_is_tuned_and_then_trained(tmp_path: Path) -> None:
    """The same commands; the size that was found trains at the effective batch that was given."""
    save("llama", tmp_path / "llama")
    tuned = output_of(
        tmp_path, "autotune", "--device", "cpu", "--vram-limit", "2GiB", "--model", "llama",
        "--max-batch", "4", "--effective-batch", "8", *SHORT, "--json", "--plain",
    )  # fmt: skip
    output_of(
        tmp_path, "train", "--device", "cpu", "--profile", "tuned", "--max-steps", "2", "--plain", "--generate-rows", "4",
        "--output-dir", "run",
    )  # fmt: skip

    document, records = json.loads(tuned), steps(tmp_path / "run")
    budget = document["devices"][0]["budget_bytes"]
    assert (document["micro_batch_size"], document["effective_batch_size"]) == (4, 8)
    assert [record["samples"] for record in records] == [8, 16]
    assert all(record["device_peak_bytes"] <= budget for record in records)
