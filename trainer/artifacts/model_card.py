"""The card of a final model: `README.md`, which the hub shows.

Every figure is from the run; unknown ones are left out. No tensors.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autotune.plan import Plan
from autotune.units import format_bytes
from trainer.config.settings import TrainSettings, WorkloadSettings
from trainer.data.encoder import Encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class CardInfo:
    """The contents of a card."""

    settings: TrainSettings
    plan: Plan
    precision: str
    encoder: Encoder
    from_hub: bool
    """Whether the base model is a hub id."""
    parameters: int
    learning_rate: float
    """The peak rate of the run."""
    rows: int
    eval_rows: int | None
    steps: int
    loss: float | None
    """Loss of the last step, per target token."""
    peak: int
    """Peak of the fullest device, bytes."""
    device: str
    evaluation: Mapping[str, Any] | None
    """The last object of `evaluations.jsonl`."""


def write_card(folder: Path, info: CardInfo, *, plot: bool) -> None:
    """Writes it into a saved model's folder; `plot` says whether loss.png exists."""
    (folder / "README.md").write_text(card(info, plot=plot), "utf-8")


def card(info: CardInfo, *, plot: bool) -> str:
    model = info.settings.workload.model
    hub = f"[{model}](https://huggingface.co/{model})"
    link = hub if info.from_hub else f"`{Path(model).name}`"
    parts = [
        front_matter(info),
        f"# {Path(info.settings.output_dir).name}",
        f"{link}, fine-tuned with chatlm on {info.rows:,} prompts and responses. "
        f"It has {info.parameters:,} parameters.",
        "## Ask it",
        f"```python\n{snippet(info)}```",
        "## Training",
        table(training_table(info)),
        *(["![Loss over the steps of the run](loss.png)"] if plot else []),
        *evaluation_parts(info),
        "## Versions",
        table([(package, version(package)) for package in ("torch", "transformers", "accelerate")]),
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(info: CardInfo) -> str:
    task = "text-generation" if info.encoder.is_causal else "text2text-generation"
    base = f"base_model: {info.settings.workload.model}\n" if info.from_hub else ""
    head = f"library_name: transformers\npipeline_tag: {task}\n{base}"
    return f"---\n{head}tags:\n- chatlm\n- sft\n---"


def snippet(info: CardInfo) -> str:
    """Python that asks the model with transformers alone; the prompt is formatted as in training."""
    is_causal = info.encoder.is_causal
    kind = "AutoModelForCausalLM" if is_causal else "AutoModelForSeq2SeqLM"
    if info.encoder.templated:
        ask = (
            'asked = tokenizer.apply_chat_template(\n    [{"role": "user", "content": question}], '
            'add_generation_prompt=True,\n    return_tensors="pt", return_dict=True,\n)\n'
        )
    else:
        prompt = "question" if is_causal else "question + tokenizer.eos_token"
        ask = f'asked = tokenizer({prompt}, add_special_tokens=False, return_tensors="pt")\n'
    answer = 'answer[0, asked["input_ids"].shape[1] :]' if is_causal else "answer[0]"
    return (
        f"from transformers import {kind}, AutoTokenizer\n\n"
        f'folder = "."  # the folder of this file\n'
        f"tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        f"model = {kind}.from_pretrained(folder)\n\n"
        f"question = {json.dumps(question(info), ensure_ascii=False)}\n"
        f"{ask}"
        f"answer = model.generate(\n"
        f'    input_ids=asked["input_ids"], attention_mask=asked["attention_mask"]\n)\n'
        f"print(tokenizer.decode({answer}, skip_special_tokens=True))\n"
    )


def question(info: CardInfo) -> str:
    """A prompt that the run answered, but not a templated one: the template would apply twice."""
    samples = info.evaluation["samples"] if info.evaluation else []
    return samples[0]["prompt"] if samples and not info.encoder.templated else "你好"


def training_table(info: CardInfo) -> list[tuple[str, str]]:
    settings, workload = info.settings, info.settings.workload
    lengths = f"{workload.max_source_length} / {workload.max_target_length}"
    rows = [
        ("data", f"{file_names(workload.data)} ({info.rows:,} rows)"),
        ("tokens of a prompt / a response, at most", lengths),
        ("what is trained", trained_parts(workload)),
        ("optimizer", workload.optimizer),
        ("learning rate", f"{info.learning_rate:.3g}, {settings.schedule}"),
        ("optimizer steps", f"{info.steps:,}"),
        ("effective batch", f"{settings.effective_batch:,}"),
        ("micro-batch", str(info.plan)),
        ("accumulation", f"{info.plan.accumulation:,}"),
        ("processes", f"{settings.world_size:,}"),
        ("precision", info.precision),
        ("seed", str(workload.seed)),
        ("device", info.device),
        ("peak memory", format_bytes(info.peak)),
    ]
    if settings.budgets:
        rows.append(("memory budget of the profile", format_bytes(min(settings.budgets))))
    if info.loss is not None:
        rows.append(("loss of the last step, per target token", f"{info.loss:.4f}"))
    return rows


def file_names(files: Sequence[str]) -> str:
    return ", ".join(Path(file).name for file in files) or "the bundled sample"


def trained_parts(workload: WorkloadSettings) -> str:
    if (rank := workload.lora_rank) is not None:
        alpha = workload.lora_alpha or 2 * rank
        return f"LoRA adapters of rank {rank}, alpha {alpha:g}, merged into the weights"
    return "all weights" if workload.freeze is None else f"all but the {workload.freeze}"


def evaluation_parts(info: CardInfo) -> list[str]:
    found = info.evaluation
    # a resume may have no evaluation data, after a part of the run that had some
    if found is None or found["loss"] is None or info.eval_rows is None:
        return []
    rows = [
        ("data", f"{file_names(info.settings.eval_data)} ({info.eval_rows:,} rows)"),
        ("after step", f"{found['step']:,}"),
        ("loss per target token", f"{found['loss']:.4f}"),
        ("perplexity", f"{found['perplexity']:.2f}"),
    ]
    if found["generated_rows"]:
        words = "Chinese characters" if found["words"] == "zh" else "13a words"
        rows += [
            ("answered greedily", f"the first {found['generated_rows']:,} rows"),
            (f"corpus BLEU-4 (sacrebleu, {words})", f"{found['bleu']:.1f}"),
            ("chrF", f"{found['chrf']:.1f}"),
            ("exact match", f"{100 * found['exact_match']:.1f} %"),
        ]
    return ["## Evaluation", table(rows)]


def table(rows: list[tuple[str, str]]) -> str:
    cells = [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows]
    return "\n".join(["| | |", "| --- | --- |", *cells])
