"""Two epochs of supervised fine-tuning on real rows, with evaluations: the figures, and the plot for docs/.

python -m bench.sft --data train.parquet --eval-data valid.parquet --result … --plot docs/loss.svg
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from bench.commands import metrics, run_json, write_result
from bench.trainer_runs import WARM
from trainer.artifacts.jsonl_log import JsonlLog

FOLDER = "model_save/bench_sft"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--plot", type=Path, help="also put the loss plot there")
    parser.add_argument("--data", help="the bundled rows without it")
    parser.add_argument("--eval-data")
    parser.add_argument("--model", default="chatlm-tiny")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--epochs", default="2")
    options = parser.parse_args()
    data = [
        word
        for flag, value in (("--data", options.data), ("--eval-data", options.eval_data))
        if value
        for word in (flag, value)
    ]
    result = run_json(
        "train", "--profile", "fast", "--num-processes", "1", "--model", options.model, *data,
        "--epochs", options.epochs, "--fresh", "--device", options.device, "--output-dir", FOLDER,
    )  # fmt: skip
    steps = metrics(FOLDER)
    timed = steps[WARM:]
    document = {
        "model": options.model,
        "rows": Path(options.data).name if options.data else "bundled",
        "eval_rows": Path(options.eval_data).name if options.eval_data else "bundled",
        "epochs": float(options.epochs),
        "result": result,
        "first_loss": steps[0]["loss"],
        "padding_efficiency": sum(s["tokens"] for s in steps)
        / sum(s["tokens"] / (1 - s["padding"]) for s in steps),
        "real_tokens_per_second": sum(s["tokens"] for s in timed)
        / sum(s["seconds"] for s in timed),
        "evaluations": [  # less the samples: the rows are not ours to hand on
            {key: value for key, value in record.items() if key != "samples"}
            for record in JsonlLog(Path(FOLDER) / "evaluations.jsonl").read()
        ],
    }
    write_result(options.result, document)
    if options.plot:
        shutil.copyfile(Path(FOLDER) / f"loss{options.plot.suffix}", options.plot)


def words(document: dict[str, Any]) -> str:
    """What came of it, for the README's table."""
    last = document["evaluations"][-1]
    return (
        f"loss {document['first_loss']:.2f} → {document['result']['final_loss']:.2f}; evaluation "
        f"{document['evaluations'][0]['loss']:.2f} → {last['loss']:.2f}, BLEU-4 {last['bleu']:.1f}, "
        f"chrF {last['chrf']:.1f} on {last['generated_rows']} answers"
    )


if __name__ == "__main__":
    main()
