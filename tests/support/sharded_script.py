"""One of two gloo processes that train sharded, then in DDP, then sharded again: figures as JSON.

The engine changes at a checkpoint each time.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from autotune.partition import Costs
from autotune.plan import Plan
from tests.support.tiny import SPARSE, collator, original, tiny
from trainer.artifacts.run_folder import RunFolder
from trainer.batching.collator import Collator
from trainer.batching.step_loader import Steps
from trainer.checkpointing.checkpoint import Position, resume, save_checkpoint
from trainer.checkpointing.export import export_model
from trainer.config.settings import WorkloadSettings
from trainer.data.encoder import Encoder
from trainer.data.sample_order import PlainSteps, SampleOrder
from trainer.evaluation.evaluator import evaluate
from trainer.model.accelerator import make_accelerator
from trainer.model.engine import Engine
from trainer.pretrained.loading import Loaded, load_model

WORKLOAD = WorkloadSettings(max_source_length=16, max_target_length=16, dropout=0.0, seed=3)
EFFECTIVE = 5
"""One by one on two processes: three micro-batches, and two and an empty one."""
KINDS = ("seq2seq", "causal", *SPARSE)
STEPS = 6
RATE = 1e-3
CLIP = 0.5
"""Below every gradient norm here, so that clipping matters."""


def load(kind: str) -> Loaded:
    """In double precision: float32 rounds a ReLU's input of 3e-7 to either side of the kink."""
    import torch

    loaded = load_model("chatlm-tiny", dropout=0.0, seed=3)
    if kind == "seq2seq":
        return replace(loaded, model=loaded.model.double())
    if kind in SPARSE:
        model = tiny(kind, seed=3).double()
        if kind == "qwen2_moe":
            model.set_experts_implementation("eager")  # the others take no doubles
        for module in model.modules():
            if type(module).__name__ == "SwitchTransformersTop1Router":
                module.dtype = torch.float64  # it casts its weights to a type of its own
        encoder = Encoder(loaded.encoder.tokenizer, is_causal=not model.config.is_encoder_decoder)
        return replace(loaded, model=model, original=original(model, encoder))
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, pad_token_id=0, bos_token_id=3, eos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double()
    encoder = Encoder(loaded.encoder.tokenizer, is_causal=True)
    return replace(loaded, model=model, original=original(model, encoder))


def collate(loaded: Loaded, rows: str) -> Collator:
    return collator(loaded.model, loaded.encoder, rows, longest=16)


def take_steps(engine: Engine, collator: Collator, numbers: range) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each step."""
    accelerator = engine.accelerator
    plan = Plan(micro_batch=1, effective_batch=EFFECTIVE, world_size=accelerator.num_processes)
    steps = Steps(
        collator, PlainSteps(SampleOrder(len(collator.store), 3), EFFECTIVE), plan,
        costs=Costs(longest=collator.longest()),
        rank=accelerator.process_index, in_step=engine.is_sharded,
    )  # fmt: skip
    found = []
    for number in numbers:
        step = steps[number]
        loss = engine.forward_backward(step.batches, target_tokens=step.target_tokens)
        total = accelerator.reduce(loss, reduction="sum").item() / step.target_tokens
        found.append((total, engine.optimizer_step(RATE)))
    return found


def build(loaded: Loaded, collator: Collator, *, fsdp: bool) -> Engine:
    workload = replace(WORKLOAD, fsdp=fsdp)
    engine = Engine(make_accelerator(workload), loaded.model, workload, clip_norm=CLIP)
    engine.preallocate(collator.worst_case_batch(1))
    return engine


def progress(step: int) -> Position:
    return Position(
        step=step,
        steps=STEPS,
        samples=step * EFFECTIVE,
        seed=3,
        profile=None,
        settings={},
        best=None,
    )


def train(kind: str, rows: str, folder: RunFolder) -> dict[str, Any]:
    """The figures: those of the steps, of evaluations, and what a rank holds sharded."""
    found: dict[str, Any] = {"steps": [], "evaluations": [], "held": []}
    done = 0
    for fsdp, stop in ((True, 2), (False, 4), (True, STEPS)):
        loaded = load(kind)
        collator = collate(loaded, rows)
        engine = build(loaded, collator, fsdp=fsdp)
        assert engine.is_sharded == fsdp
        assert resume(folder, engine, lambda text: None) == done
        found["steps"] += take_steps(engine, collator, range(done, stop))
        done = stop
        size = 3 + engine.accelerator.process_index  # unequal numbers of forward passes
        found["evaluations"].append(evaluate(engine, collator, size=size))
        save_checkpoint(folder, engine, progress(done), loaded.original, keep=9)
        engine.accelerator.wait_for_everyone()
        found["held"].append(held(engine))
    export_model(
        folder, engine, loaded.original,
        dtype=engine.unwrapped.dtype, max_new_tokens=16, describe=lambda hidden: None,
    )  # fmt: skip
    engine.accelerator.wait_for_everyone()
    return {**found, "rank": engine.accelerator.process_index}


def held(engine: Engine) -> int:
    """Bytes of weights, gradients and optimizer state on this rank."""
    from torch.distributed.tensor import DTensor

    tensors: list[Any] = list(engine.unwrapped.parameters())
    tensors += [p.grad for p in engine.unwrapped.parameters() if p.grad is not None]
    tensors += [
        v for state in engine.raw_optimizer.state.values() for k, v in state.items() if k != "step"
    ]
    own = (t.to_local() if isinstance(t, DTensor) else t for t in tensors)
    return sum(t.numel() * t.element_size() for t in own)


def main(folder: Path) -> None:
    """Trains each kind of model on the folder's rows, in a run folder of its own."""
    for kind in KINDS:
        run_folder = RunFolder(folder / kind)
        if os.environ["RANK"] == "0":
            run_folder.claim({}, fresh=False)
        figures = train(kind, str(folder / "rows.jsonl"), run_folder)
        (run_folder.path / f"figures-{figures['rank']}.json").write_text(json.dumps(figures))
