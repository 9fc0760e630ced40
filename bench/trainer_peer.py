"""One run of another trainer in a process of its own, step by step written down as ours are.

`seq2seq` is transformers' Seq2SeqTrainer, `causal` its Trainer, `sft` TRL's SFTTrainer. Each is used as
its documentation has it: random batches, padded to the longest of the micro-batch. Optimizer, schedule,
precision and loader processes are those of our run. What is added only counts: tokens at the start of a
step, loss, time and memory where the trainer itself logs.
"""

import argparse
import json
import time
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.trainer_runs import Task
from trainer.config.settings import TrainSettings

EPSILON = 1e-6
"""Of our AdamW."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=tuple(MAKERS))
    parser.add_argument("--task", type=json.loads, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    task = Task(**options.task)
    out = options.out.open("w")

    def write(record: dict[str, Any]) -> None:
        out.write(json.dumps(record) + "\n")
        out.flush()

    peer = MAKERS[options.kind](task)
    count(peer, task, write, mean_losses=options.kind == "seq2seq")
    peer.train()


def shared(task: Task) -> dict[str, Any]:
    """The arguments that all of them take."""
    defaults = {field.name: field.default for field in fields(TrainSettings)}
    return {
        "output_dir": str(Path(task.folder) / "peer"),
        "max_steps": task.steps,
        "per_device_train_batch_size": task.micro_batch,
        "gradient_accumulation_steps": task.accumulation,
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": task.warmup_steps,
        "optim": "adamw_torch_fused",
        "adam_epsilon": EPSILON,
        "weight_decay": defaults["weight_decay"],
        "max_grad_norm": defaults["clip_norm"],
        "bf16": task.precision == "bf16",
        "fp16": task.precision == "fp16",
        "use_cpu": task.device == "cpu",
        "gradient_checkpointing": False,
        "dataloader_num_workers": task.loaders,
        "dataloader_pin_memory": task.device == "cuda",
        "logging_steps": 1,
        "logging_first_step": True,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": task.seed,
    }


def read(task: Task) -> tuple[Any, Any, Any]:
    """Model, tokenizer and tokens, these from the disk and mapped, as ours are."""
    import torch
    from datasets import load_from_disk
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    kind: Any = AutoModelForCausalLM if task.is_causal else AutoModelForSeq2SeqLM
    model = kind.from_pretrained(task.model, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(task.model), load_from_disk(task.tokens)


def seq2seq(task: Task) -> Any:
    from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

    model, tokenizer, rows = read(task)
    return Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(**shared(task)),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
    )


def causal(task: Task) -> Any:
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    model, tokenizer, rows = read(task)
    return Trainer(
        model=model,
        args=TrainingArguments(**shared(task)),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer),  # the one that pads given labels
        processing_class=tokenizer,
    )


def sft(task: Task) -> Any:
    trl: Any = import_module("trl")
    model, tokenizer, rows = read(task)
    return trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(**shared(task), max_length=None, packing=False),
        train_dataset=rows,
        processing_class=tokenizer,
    )


MAKERS = {"seq2seq": seq2seq, "causal": causal, "sft": sft}


def count(peer: Any, task: Task, write: Any, *, mean_losses: bool) -> None:
    """Lets the trainer tell each step: `write` gets what `metrics.jsonl` holds of ours.

    `mean_losses`: T5's own loss is a mean over the micro-batch, whatever Trainer asks for, and what is
    logged is their sum; the others divide by the tokens of the whole step.
    """
    from transformers import PrinterCallback, TrainerCallback

    from autotune.devices.allocator import CudaMemory, DeviceMemory, HostMemory
    from autotune.devices.processes import resident

    batches_of, loss_of = peer.get_batch_samples, peer.compute_loss
    step: dict[str, Any] = {"losses": []}

    def get_batch_samples(*args: Any, **kwargs: Any) -> Any:
        batches, items = batches_of(*args, **kwargs)
        learnt = sum(batch["labels"].ne(-100).sum() for batch in batches)
        tokens = sum(batch["attention_mask"].sum() for batch in batches)
        area = sum(batch["input_ids"].numel() for batch in batches)
        if not task.is_causal:
            tokens = tokens + learnt
            area += sum(batch["labels"].numel() for batch in batches)
        step.update(tokens=tokens, learnt=learnt, area=area, micro_batches=len(batches))
        return batches, items

    def compute_loss(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        learnt = inputs["labels"].ne(-100).sum()
        loss = loss_of(model, inputs, *args, **kwargs)
        step["losses"].append(loss.detach() * (learnt if mean_losses else 1))
        return loss

    peer.get_batch_samples, peer.compute_loss = get_batch_samples, compute_loss
    memory: DeviceMemory = HostMemory() if task.device == "cpu" else CudaMemory()

    class Telling(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.ended = time.perf_counter()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" not in logs:  # the summary at the end
                return
            now = time.perf_counter()  # the loss was read: the device has done the step
            seconds, self.ended = now - self.ended, now
            loss = float(sum(step["losses"])) / (float(step["learnt"]) if mean_losses else 1.0)
            step["losses"].clear()
            tokens = int(step["tokens"])
            write(
                {
                    "step": state.global_step,
                    "tokens": tokens,
                    "target_tokens": int(step["learnt"]),
                    "loss": loss,
                    "grad_norm": float(logs["grad_norm"]),
                    "learning_rate": logs["learning_rate"],
                    "micro_batches": step["micro_batches"],
                    "seconds": seconds,
                    "padding": 1 - tokens / step["area"],
                    "device_peak_bytes": memory.peak(),
                    "host_bytes": resident("self"),
                }
            )

    peer.remove_callback(PrinterCallback)
    peer.add_callback(Telling())


if __name__ == "__main__":
    main()
