"""What the trainers of a comparison are given: a model in a folder, rows as tokens, and a tuned profile."""

import argparse
import math
import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import profiles
from bench.commands import CHATLM
from bench.peers import TOKENIZER
from bench.trainer_runs import Task, environment
from profiles.schema import BatchSection, Profile, RunSection
from trainer.reading.readers import bundled

LLAMAS = {
    "llama-tiny": {
        "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
    },
    "llama-0.1b": {
        "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
    },
}  # fmt: skip
"""Causal models of random weights, made here."""
RATES = {"chatlm-tiny": 3e-3, "llama-tiny": 3e-3}
RATE = 3e-4
"""Of larger models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What is compared on a device, unless told otherwise."""

    model: str
    causal_model: str
    micro_batch: int
    precision: str


DEFAULTS = {
    "cpu": Defaults(
        model="chatlm-tiny", causal_model="llama-tiny", micro_batch=16, precision="fp32"
    ),
    "cuda": Defaults(
        model="chatlm-0.2b", causal_model="llama-0.1b", micro_batch=40, precision="bf16"
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those that all comparisons of trainers have."""
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="the bundled rows without it")
    parser.add_argument("--device", choices=tuple(DEFAULTS), default="cpu")
    parser.add_argument("--model", help="of T5's kind; chatlm-tiny, on a card chatlm-0.2b")
    parser.add_argument("--micro-batch", type=int, help="16, on a card 40")
    parser.add_argument("--effective-batch", type=int, default=240)
    parser.add_argument("--max-length", type=int, default=512, help="of sources and of targets")
    parser.add_argument("--steps", type=int, default=14, help="the first two are not timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", help="the cut is tuned here without it")


def make_task(options: argparse.Namespace, model: str, folder: Path) -> Task:
    """The task of that model, its folder made and its cut tuned."""
    default = DEFAULTS[options.device]
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["CHATLM_CACHE"] = str(
        folder / "cache"
    )  # of the runs, and of the tokens written here
    data = str(options.data.resolve()) if options.data else bundled("train")
    task = Task(
        model=str(folder / "model"),
        is_causal=make_model(model, folder / "model"),
        data=data,
        tokens=str(folder / "tokens"),
        folder=str(folder),
        profile=options.profile or str(folder / "profiles" / "bench.toml"),
        micro_batch=options.micro_batch or default.micro_batch,
        effective=options.effective_batch,
        steps=options.steps,
        learning_rate=RATES.get(model, RATE),
        device=options.device,
        precision=default.precision,
    )
    if not options.profile:
        tune(task, options.max_length)
    profile = profiles.load(task.profile)
    write_tokens(task, profile.run.max_source_length, profile.run.max_target_length)
    return replace(
        task,
        micro_batch=profile.batch.micro_batch_size,
        effective=profile.batch.effective_batch_size,
        loaders=profile.run.loader_workers,
    )


def make_model(name: str, folder: Path) -> bool:
    """Writes a preset, or one of `LLAMAS`, or another folder's model; returns whether it is causal."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

    from trainer.pretrained.loading import load_model

    if name in LLAMAS:
        tokenizer: Any = AutoTokenizer.from_pretrained(TOKENIZER)
        shape: dict[str, Any] = LLAMAS[name]
        set_seed(0)
        model: Any = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                max_position_embeddings=2048, **shape,
            )
        )  # fmt: skip
    else:
        loaded = load_model(name, dropout=None, seed=0)
        model, tokenizer = loaded.model, loaded.encoder.tokenizer
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return not model.config.is_encoder_decoder


def tune(task: Task, max_length: int) -> None:
    """`chatlm autotune` up to the micro-batch that is compared: it knows what padding costs then."""
    words = [
        "autotune", "--target-vram", "0.9", "--model", task.model, "--data", task.data,
        "--device", task.device, "--num-processes", "1", "--precision", task.precision,
        "--effective-batch", str(task.effective), "--max-batch", str(task.micro_batch),
        "--max-source-length", str(max_length), "--max-target-length", str(max_length),
        "--base", "standard", "--name", "bench",
    ]  # fmt: skip
    print(f"\n$ chatlm {' '.join(words)}"[:120], flush=True)
    subprocess.run([*CHATLM, *words], cwd=task.folder, env=environment(task), check=True)


def make_profile(task: Task) -> Profile:
    """One that says no more than how a step is cut, and who reads the rows."""
    return Profile(
        schema=1,
        batch=BatchSection(
            micro_batch_size=task.micro_batch,
            gradient_accumulation_steps=task.accumulation,
            effective_batch_size=task.effective,
        ),
        run=RunSection(loader_workers=task.loaders),
    )


def write_tokens(task: Task, max_source: int, max_target: int) -> None:
    """The rows as our trainer reads them, in the form in which the peers do."""
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoTokenizer

    from trainer.data.encoder import Encoder
    from trainer.data.token_store import open_store

    encoder = Encoder(AutoTokenizer.from_pretrained(task.model), is_causal=task.is_causal)
    store = open_store([task.data], encoder, max_source=max_source, max_target=max_target)
    pairs = [(store.source(row).tolist(), store.target(row).tolist()) for row in range(len(store))]
    rows = [
        {"input_ids": [*source, *target], "labels": [-100] * len(source) + target}
        if task.is_causal
        else {"input_ids": source, "labels": target}
        for source, target in pairs
    ]
    disable_progress_bars()
    Dataset.from_list(rows).save_to_disk(task.tokens)


def facts(options: argparse.Namespace, task: Task) -> dict[str, Any]:
    """What a result file says of its task."""
    return {
        "rows": options.data.name if options.data else "bundled",
        "device": task.device,
        "precision": task.precision,
        "micro_batch": task.micro_batch,
        "effective_batch": task.effective,
        "steps": task.steps,
        "loader_workers": task.loaders,
        "learning_rate": task.learning_rate,
        "parameters": parameters(task),
    }


def parameters(task: Task) -> int:
    """Of the model, counted in its file."""
    from safetensors import safe_open

    with safe_open(str(Path(task.model) / "model.safetensors"), "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
