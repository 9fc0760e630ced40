"""Training peaks where its probe did: a dry run of the worst batch at the tuned size, then real steps."""

import json
from pathlib import Path

from tests.support.commands import output_of, steps


def test_no_step_of_training_peaks_above_the_budget_or_its_probe(tmp_path: Path) -> None:
    """The highest of all steps; below its probe where a finer cut pays."""
    tuned = output_of(
        tmp_path, "autotune", "--device", "cpu", "--vram-limit", "512MiB",
        "--target-vram", "0.6", "--max-batch", "32", "--effective-batch", "64", "--json", "--plain",
    )  # fmt: skip
    output_of(
        tmp_path, "train", "--device", "cpu", "--profile", "tuned", "--max-steps", "6", "--generate-rows", "4",
        "--output-dir", "run", "--plain",
    )  # fmt: skip

    (card,) = json.loads(tuned)["devices"]
    records = steps(tmp_path / "run")
    highest = max(record["device_peak_bytes"] for record in records)
    assert [record["samples"] for record in records] == [64 * n for n in range(1, 7)]
    assert highest <= card["budget_bytes"]
    assert 0.85 * card["peak_bytes"] <= highest <= 1.02 * card["peak_bytes"]
