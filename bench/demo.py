"""`make demo`: tunes, trains, and says in a few lines what that was good for.

Everything is what a user would type. Without an NVIDIA GPU the CPU plays a card of 1 GiB.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from bench import presets
from bench.commands import metrics, run, speed, write_result
from profiles import load
from profiles.store import FOLDER

EPOCHS = 10
ROUNDS = 4
"""Steps that each way to cut is timed over, in turns, after one more."""
QUESTIONS = 150


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, help="also write the figures there")
    parser.add_argument("--pictures", type=Path, help="also draw the two screens there")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    options = parser.parse_args()
    started = time.monotonic()
    device = ("--device", options.device)
    # on a larger card the effective batch of the tiny model grows with it: too few steps to learn
    emulated = not has_gpu(options.device)
    card = ("--vram-limit", "1GiB") if emulated else ("--effective-batch", "64")
    tuning, training = Path("logs/demo_autotune.jsonl"), Path("logs/demo_train.jsonl")
    Path("logs").mkdir(exist_ok=True)
    run("autotune", "--target-vram", "0.6", *card, *device, "--events", str(tuning))
    profile = load(str(FOLDER / "tuned.toml"))
    epochs = ("--epochs", str(EPOCHS), "--generate-rows", "20")  # it asks questions of its own
    run("train", "--profile", "tuned", *epochs, "--fresh", *device, "--events", str(training))
    tuned = profile.batch.micro_batch_size
    turns = [
        turn
        for turn in presets.turns_of(tuned, ("small",))
        if turn.name == "small" or turn.cut == "length"
    ]
    compared = presets.compare(FOLDER / "tuned.toml", turns, ROUNDS, "cpu" if emulated else "cuda")
    steps = metrics("model_save/sft_tuned")
    document = {
        "emulated": emulated,
        "micro_batch_size": tuned,
        "effective_batch_size": profile.batch.effective_batch_size,
        "peak_bytes": profile.memory.peak_bytes,
        "budget_bytes": profile.memory.budget_bytes,
        "training_peak_bytes": max(step["device_peak_bytes"] for step in steps),
        "probes": len(profile.trial),
        "samples_per_second": speed(steps),
        **compared,
        "first_loss": steps[0]["loss"],
        "final_loss": steps[-1]["loss"],
        "exact_match": exact_match("model_save/sft_tuned"),
        "seconds": time.monotonic() - started,
    }
    print(summary(document))
    if options.pictures:
        draw(tuning, options.pictures / "autotune.svg", "chatlm autotune")
        draw(training, options.pictures / "train.svg", "chatlm train")
    if options.result:
        write_result(options.result, document)


def has_gpu(device: str) -> bool:
    """Whether the run will use NVIDIA cards."""
    from autotune.devices.nvml import Nvml
    from autotune.errors import DeviceError

    if device == "cpu":
        return False
    try:
        with Nvml.open() as nvml:
            return bool(nvml.devices)
    except DeviceError:
        return False


def exact_match(folder: str) -> float:
    """Share of the bundled questions that training never saw, answered to the letter."""
    import torch
    import transformers
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    from trainer.reading.readers import bundled, read_rows

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    rows = list(read_rows(bundled("valid")))[:QUESTIONS]
    right = 0
    for start in range(0, len(rows), 50):
        part = rows[start : start + 50]
        asked = tokenizer(
            [row.prompt + tokenizer.eos_token for row in part], padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            answers = model.generate(
                input_ids=asked["input_ids"],
                attention_mask=asked["attention_mask"],
                max_new_tokens=80,
            )
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        for text, row in zip(texts, part, strict=True):
            wanted = str(tokenizer.decode(tokenizer(row.response)["input_ids"]))
            right += text.strip() == wanted.strip()
    return right / len(rows)


def draw(events: Path, out: Path, title: str) -> None:
    """The last frame of a recorded run."""
    from bench.picture import main as picture

    picture([str(events), str(out), "--title", title])


def summary(document: dict[str, Any]) -> str:
    tuned, small = ("tuned", "length"), ("small", "length")
    size = presets.gain(document, tuned, small)
    both = presets.gain(document, tuned, ("small", "fixed"))
    speeds = {
        (turn["name"], turn["cut"]): turn["median_samples_per_second"] for turn in document["turns"]
    }
    card = "an emulated 1 GiB card (CPU)" if document["emulated"] else "the GPU"
    gib = 2**30
    return f"""
  chatlm demo, on {card}
    micro-batch   {document["micro_batch_size"]}, in {document["probes"]} probes; effective batch \
{document["effective_batch_size"]}
    peak          {document["peak_bytes"] / gib:.2f} GiB probed, \
{document["training_peak_bytes"] / gib:.2f} GiB in training, \
budget {document["budget_bytes"] / gib:.2f} GiB
    speed         {speeds[tuned]:.0f} samples/s. Preset small's micro-batch of \
{presets.row(document, *small)["micro_batch"]}, same effective batch and samples:
                  {speeds[small]:.0f}, so {size["median"]:.1f} x ({size["least"]:.1f} to \
{size["most"]:.1f}), when cut by length as ours is;
                  {speeds["small", "fixed"]:.0f}, so {both["median"]:.1f} x ({both["least"]:.1f} to \
{both["most"]:.1f}), in micro-batches of one size, as most trainers cut.
                  Medians of {document["rounds"]} steps each, in turns in one process
    loss          {document["first_loss"]:.2f} at the start, {document["final_loss"]:.2f} at the end
    exact match   {document["exact_match"]:.0%} of {QUESTIONS} questions that it never saw
    took          {document["seconds"]:.0f} s
"""


if __name__ == "__main__":
    main()
