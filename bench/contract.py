"""What the project promises, tried on one data file and written down.

Tunes, trains with the profile, and trains a few steps again cut in other ways: the peak must hold
the budget and stay near the probe's, and every cut must give the same loss and gradient norm.
"""

import argparse
from pathlib import Path
from typing import Any

from bench.commands import metrics, run_json, write_result

CUTS = (1, 3, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--data", help="the bundled rows without it")
    parser.add_argument("--model", default="chatlm-tiny")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--vram-limit", default="4GiB")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--processes", type=int, nargs="+", default=(1, 2))
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
        "cuts": compare_cuts(common, options.processes),
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


def compare_cuts(common: list[str], processes: list[int]) -> list[dict[str, Any]]:
    """20 steps at other micro-batches and numbers of processes, against the first of them."""
    rows: list[dict[str, Any]] = []
    reference: list[dict[str, Any]] = []
    for world_size in processes:
        for micro_batch in CUTS:
            folder = f"model_save/contract_{world_size}_{micro_batch}"
            run_json(
                "train", "--profile", "contract", "--micro-batch", str(micro_batch),
                "--num-processes", str(world_size), "--dropout", "0", "--seed", "7",
                "--precision", "fp32", "--max-steps", "20", "--fresh", "--output-dir", folder,
                *common,
            )  # fmt: skip
            steps = metrics(folder)
            reference = reference or steps
            rows.append(
                {
                    "processes": world_size,
                    "micro_batch": micro_batch,
                    "most_micro_batches_a_step": max(step["micro_batches"] for step in steps),
                    "largest_loss_difference": _difference(steps, reference, "loss"),
                    "largest_grad_norm_difference": _difference(steps, reference, "grad_norm"),
                }
            )
    return rows


def _difference(steps: list[dict[str, Any]], reference: list[dict[str, Any]], key: str) -> float:
    return max(abs(float(a[key] - b[key])) for a, b in zip(steps, reference, strict=True))


if __name__ == "__main__":
    main()
