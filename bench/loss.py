"""What a loss that builds no logits saves: tunings and steps of both ways, in turns, within one run.

    python -m bench.loss --result bench/results/loss-cpu.json

Each model is tuned with `--loss logits` and with the default on the same emulated card. Then one process
holds both and takes their steps in turns: at the size that `logits` found, for the ratio of speeds, and
each at its own. The time of torch's `F.linear_cross_entropy` is that of the loss alone, in float32.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.workers.launch import worker_environment
from bench.commands import run_json, write_result
from bench.paired import of_rounds, words
from trainer.reading.readers import bundled

ROUNDS = 11
"""Steps of each way, in turns, after one that warms up."""
MIB = 2**20
MOST = 64
"""The largest micro-batch that is tried: an answer of so many is a lower bound."""
SLOWEST = 0.98
"""Promised speed against `logits` at the same size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model, the card that it is tuned on, and the growth of the micro-batch that was promised."""

    name: str
    source: int
    target: int
    """Tokens of every row."""
    limit: str
    promised: float


CASES = (
    Case(name="T5, width 128, vocabulary 29,298", source=64, target=64, limit="300MiB", promised=3.0),
    Case(name="chatlm-tiny", source=64, target=64, limit="240MiB", promised=1.15),
    Case(name="Llama, width 256, vocabulary 151,936", source=16, target=16, limit="1800MiB", promised=1.8),
    Case(name="chatlm-0.2b", source=48, target=48, limit="5800MiB", promised=1.15),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path)
    parser.add_argument("--only", help="models whose names begin with it")
    parser.add_argument("--child", help="JSON of what a process times")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(timed(**json.loads(options.child))))
        return
    models = earlier(options.result) if options.only else {}
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if case.name.startswith(options.only or ""):
                models[case.name] = measure(case, Path(folder))
    document = {
        "models": [models[case.name] for case in CASES if case.name in models],
        "loss_alone": in_child(kind="losses"),
        "rounds": ROUNDS,
    }
    if options.result:
        write_result(options.result, document)
    print(table(document))


def earlier(result: Path | None) -> dict[str, Any]:
    """What a result file says of each model: `--only` replaces some of it."""
    if result is None or not result.exists():
        return {}
    return {found["model"]: found for found in json.loads(result.read_text())["models"]}


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Both tunings of a model, and the steps at the sizes that they found."""
    model = save(case.name, folder)
    rows = folder / f"{case.source}.jsonl"
    text = Path(bundled("train")).read_text()
    lines = [
        {"prompt": text[n : n + 2000], "response": text[-2001 - n : -1 - n]} for n in range(128)
    ]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found: dict[str, Any] = {}
    for way in ("logits", "chunked"):
        tuning = run_json(
            "autotune", "--device", "cpu", "--model", model, "--data", str(rows), "--loss", way,
            "--max-source-length", str(case.source), "--max-target-length", str(case.target),
            "--max-batch", str(MOST), "--vram-limit", case.limit, "--target-vram", "0.9", "--num-processes", "1",
            "--name", f"loss-{way}",
        )  # fmt: skip
        found[way] = {
            "micro_batch": tuning["micro_batch_size"],
            "bytes_a_sample": bytes_a_sample(tuning["trials"]),
        }
    timing = in_child(
        kind="steps", model=model, data=str(rows), source=case.source, target=case.target,
        logits=found["logits"]["micro_batch"], chunked=found["chunked"]["micro_batch"],
    )  # fmt: skip
    for way, speed in timing.pop("samples_per_second").items():
        found[way]["samples_per_second"] = speed
    gain = found["chunked"]["micro_batch"] / found["logits"]["micro_batch"]
    return {
        "model": case.name,
        "tokens": [case.source, case.target],
        "limit": case.limit,
        **found,
        "micro_batch_ratio": gain,
        "promised_ratio": case.promised,
        **timing,
        "holds": gain >= case.promised and timing["speed_ratio"] >= SLOWEST,
    }


def bytes_a_sample(trials: list[dict[str, Any]]) -> float:
    """The growth of the peak between the smallest size and the largest that ran."""
    peaks = {trial["size"]: trial["peak_bytes"] for trial in trials if trial["peak_bytes"]}
    small, large = min(peaks), max(peaks)
    return float((peaks[large] - peaks[small]) / max(1, large - small))


def save(name: str, folder: Path) -> str:
    """A model with random weights as a user's folder; a preset is its own name."""
    import torch
    import transformers as hf

    from trainer.pretrained.presets import BUNDLED_TOKENIZER

    if name.startswith("chatlm-"):
        return name
    path = folder / name.split(",")[0]
    tokenizer = hf.AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    ends: dict[str, Any] = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(0)
    model: Any
    if name.startswith("T5"):
        start: dict[str, Any] = {"decoder_start_token_id": tokenizer.pad_token_id}
        model = hf.T5ForConditionalGeneration(
            hf.T5Config(
                vocab_size=29298, d_model=128, d_kv=32, d_ff=512, num_heads=4, num_layers=2,
                dropout_rate=0.0, **start, **ends,
            )
        )  # fmt: skip
    else:
        model = hf.LlamaForCausalLM(
            hf.LlamaConfig(
                vocab_size=151936, hidden_size=256, intermediate_size=1024, num_hidden_layers=4,
                num_attention_heads=4, tie_word_embeddings=True, **ends,
            )
        )  # fmt: skip
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def in_child(**asked: Any) -> Any:
    """What a process of its own times, with a worker's environment."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.loss", "--child", json.dumps(asked)],
        check=True, stdout=subprocess.PIPE, env=worker_environment("cpu", 1),
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def timed(kind: str, **asked: Any) -> Any:
    return losses() if kind == "losses" else steps(**asked)


def steps(
    model: str, data: str, source: int, target: int, logits: int, chunked: int
) -> dict[str, Any]:
    """Samples per second of each way at its own size, and the ratio of both at that of `logits`."""
    from trainer.config.settings import WorkloadSettings
    from trainer.workload import build

    def workload(loss: Any) -> Any:
        settings = WorkloadSettings(
            model=model, data=(data,), loss=loss, max_source_length=source, max_target_length=target
        )
        # accumulation would take two micro-batches: one is a whole step
        return build({**settings.as_json(), "effective": 1, "effective_fixed": False})

    ways = {way: workload(way) for way in ("logits", "chunked")}

    def step(way: str, size: int) -> None:
        ways[way].forward_backward(size)
        ways[way].optimizer_step()

    same = in_turns({way: lambda way=way: step(way, logits) for way in ways})  # type: ignore[misc]
    own = in_turns({"chunked": lambda: step("chunked", chunked)})
    ratios = [a / b for a, b in zip(same["logits"], same["chunked"], strict=True)]
    return {
        "samples_per_second": {
            "logits": logits / statistics.median(same["logits"]),
            "chunked": chunked / statistics.median(own["chunked"]),
        },
        "speed_ratio": statistics.median(ratios),
        "speed_ratios": ratios,
    }


def in_turns(runs: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each run in each round; who begins changes. The first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(ROUNDS + 1):
        for name in sorted(runs, reverse=number % 2 == 0):
            started = time.perf_counter()
            runs[name]()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def losses() -> list[dict[str, Any]]:
    """Seconds of the loss and its gradients alone: of logits, ours, and torch's where it has one."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    from trainer.model.chunked_loss import LogitsForm, chunked_loss

    def compare(vocabulary: int, width: int, tokens: int) -> dict[str, Any]:
        head = nn.Linear(width, vocabulary, bias=False)
        head.weight.grad = torch.zeros_like(head.weight)
        hidden, labels = torch.randn(1, tokens, width), torch.randint(vocabulary, (1, tokens))

        def of_logits() -> None:
            read = hidden.clone().requires_grad_()
            loss = F.cross_entropy(head(read)[0], labels[0], reduction="sum")
            torch.autograd.backward(loss)

        def of_torch() -> None:
            read = hidden.clone().requires_grad_()
            functions: Any = F
            options = getattr(nn, "LinearCrossEntropyOptions")()  # noqa: B009
            loss = functions.linear_cross_entropy(
                read[0], head.weight, labels[0], reduction="sum", options=options
            )
            torch.autograd.backward(loss)

        def ours() -> None:
            chunked_loss(hidden, labels, head, LogitsForm(), factor=torch.ones(()))

        runs: dict[str, Callable[[], object]] = {"logits": of_logits, "chunked": ours}
        if hasattr(F, "linear_cross_entropy"):  # 2.13
            runs["torch"] = of_torch
        found = {name: statistics.median(times) for name, times in in_turns(runs).items()}
        return {"vocabulary": vocabulary, "width": width, "tokens": tokens, "seconds": found}

    return [compare(2048, 128, 2048), compare(29298, 128, 1024)]


def table(document: Mapping[str, Any]) -> str:
    """Markdown for the docs, one row a model."""
    lines = [
        "| model, tokens | micro-batch: logits → chunked | memory a sample | samples/s | speed at the same size |",
        "| --- | --- | --- | --- | --- |",
    ]
    for found in document["models"]:
        old, new = found["logits"], found["chunked"]
        bound = "at least " if new["micro_batch"] == MOST else ""
        lines.append(
            f"| {found['model']}; {' + '.join(map(str, found['tokens']))} "
            f"| {old['micro_batch']} → {new['micro_batch']}: {bound}{found['micro_batch_ratio']:.2f} × "
            f"| {old['bytes_a_sample'] / MIB:.1f} → {new['bytes_a_sample'] / MIB:.1f} MiB "
            f"| {old['samples_per_second']:.1f} → {new['samples_per_second']:.1f} "
            f"| {words(of_rounds(found['speed_ratios']))} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
