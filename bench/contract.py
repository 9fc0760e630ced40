"""What a tuning promises of training, tried on one data file and written down.

Tunes, and trains with the profile: the peak must hold the budget and stay near the probe's. That every cut
gives the same loss and gradient norm is `exactness`' to show.
"""

import argparse
from pathlib import Path
from typing import Any

from bench.commands import metrics, run_json, write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--data", help="the bundled rows without it")
    parser.add_argument("--model", default="chatlm-tiny")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--vram-limit", default="4GiB")
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    common = ["--model", options.model, "--device", options.device]
    if options.data:
        common += ["--data", options.data]
    tuning = run_json(
        "autotune", "--target-vram", "0.6", "--vram-limit", options.vram_limit,
        "--name", "contract", "--num-processes", "1", *common,
    )  # fmt: skip
    document = {
        "model": options.model,
        "rows": Path(options.data).name if options.data else "bundled",
        "tuning": tuning,
        "training": hold(tuning, common, options.steps),
    }
    write_result(options.result, document)


def hold(tuning: dict[str, Any], common: list[str], steps: int) -> dict[str, Any]:
    """The training peak against the probe's and the budget."""
    result = run_json(
        "train", "--profile", "contract", "--max-steps", str(steps), "--fresh",
        "--output-dir", "model_save/contract", *common,
    )  # fmt: skip
    device = tuning["devices"][0]
    losses = [step["loss"] for step in metrics("model_save/contract")]
    return {
        **result,
        "probe_peak_bytes": device["peak_bytes"],
        "budget_bytes": device["budget_bytes"],
        "peak_against_probe": result["peak_bytes"] / device["peak_bytes"],
        "first_loss": losses[0],
        "mean_loss_of_last_ten": sum(losses[-10:]) / len(losses[-10:]),
    }


if __name__ == "__main__":
    main()
