"""One optimizer step of the same 16 samples, cut into 1, 2, 4 and 8 micro-batches: the gradient's norm.

    python -m bench.accumulation --result bench/results/accumulation-cpu.json

A step's gradient follows from its samples, so the norm must be the same however they are cut. Each
figure is what a trainer's own run logged, in fp32 without dropout: theirs by `trainer.train()`, ours by
`bench.plain`, our trainer made to cut into as many micro-batches as they do.
"""

import argparse
import importlib.util
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import profiles
from bench.commands import write_result
from bench.trainer_runs import Ran, Task, run_ours, run_peer
from bench.trainer_tasks import make_model, make_profile, write_tokens
from bench.trainers import versions
from profiles.schema import RunSection
from trainer.reading.readers import bundled, read_rows

SAMPLES = 16
CUTS = (1, 2, 4, 8)
MODELS = {"chatlm-tiny": ("seq2seq",), "llama-tiny": ("causal", "sft")}
NAMES = {
    "seq2seq": "transformers, Seq2SeqTrainer",
    "causal": "transformers, Trainer",
    "sft": "TRL, SFTTrainer",
    "ours": "ours",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument(
        "--data", type=Path, help="the bundled rows without it; 16 of them are used"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    file = str(options.data.resolve()) if options.data else bundled("train")
    rows: list[dict[str, Any]] = []
    for model, peers in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            task = make_task(model, file, Path(folder), options.device)
            for name in (*peers, "ours"):
                if name == "sft" and importlib.util.find_spec("trl") is None:
                    print("trl is not installed: pip install --group peers")
                    continue
                rows.append({"model": model, "trainer": name, **norms(task, name)})
    document = {
        "rows": options.data.name if options.data else "bundled",
        "device": options.device,
        "samples": SAMPLES,
        "versions": versions(),
        "trainers": rows,
    }
    write_result(options.result, document)
    print(table(document))


def make_task(model: str, file: str, folder: Path, device: str) -> Task:
    """The first rows of the file, in a file of their own."""
    data = folder / "rows.jsonl"
    with data.open("w") as out:
        for found in islice(read_rows(file), SAMPLES):
            pair = {"prompt": found.prompt, "response": found.response}
            out.write(json.dumps(pair, ensure_ascii=False) + "\n")
    task = Task(
        model=str(folder / "model"),
        is_causal=make_model(model, folder / "model"),
        data=str(data),
        tokens=str(folder / "tokens"),
        folder=str(folder),
        profile="",
        micro_batch=SAMPLES,
        effective=SAMPLES,
        steps=1,
        learning_rate=1e-4,
        device=device,
    )
    longest = RunSection()
    write_tokens(task, longest.max_source_length, longest.max_target_length)
    return task


def norms(task: Task, name: str) -> dict[str, Any]:
    """The gradient norm that each cut logged, and the loss; raises RuntimeError when a run fails."""
    found = [first_step(run(task, name, SAMPLES // cut)) for cut in CUTS]
    values = [step["grad_norm"] for step in found]
    return {
        "accumulation": [step["micro_batches"] for step in found],
        "grad_norm": values,
        "loss": [step["loss"] for step in found],
        "largest_to_smallest": max(values) / min(values),
    }


def run(task: Task, name: str, micro_batch: int) -> Ran:
    """One step of all samples; the profile says no more than how it is cut."""
    cut = replace(
        task, micro_batch=micro_batch, profile=str(Path(task.folder) / f"{micro_batch}.toml")
    )
    profiles.save(make_profile(cut), Path(cut.profile))
    return run_ours(cut, "plain") if name == "ours" else run_peer(cut, name)


def first_step(ran: Ran) -> Mapping[str, Any]:
    if ran.error:
        raise RuntimeError(ran.error)
    return ran.steps[0]


def table(document: Mapping[str, Any]) -> str:
    """Markdown for the docs, one row a trainer."""
    cuts = document["trainers"][0]["accumulation"]
    lines = [
        f"| trainer | {' | '.join(f'accumulation {cut}' for cut in cuts)} | largest / smallest |",
        f"| --- | {' | '.join('---' for _ in cuts)} | --- |",
    ]
    lines += [
        f"| `{found['model']}`: {NAMES[found['trainer']]} "
        f"| {' | '.join(f'{norm:.4f}' for norm in found['grad_norm'])} "
        f"| {found['largest_to_smallest']:.6f} |"
        for found in document["trainers"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
