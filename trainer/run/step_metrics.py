"""One optimizer step in numbers, summed up over the ranks: the object that `metrics.jsonl` holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from autotune.devices import processes
from autotune.devices.budget import context_bytes
from trainer.batching.step_loader import Step
from trainer.config.settings import TrainSettings
from trainer.model.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Summed:
    """A step over all ranks."""

    tokens: int
    area: int
    """Tokens with padding."""
    loss: float
    """Mean over the step's target tokens."""
    peak: int
    """Of the fullest device, bytes."""
    host: int
    """Resident memory of all workers, on all nodes, bytes."""
    micro_batches: int
    """On the rank that had the most."""
    stop: bool
    """Whether any rank was asked to stop."""


def sum_up(
    engine: Engine, settings: TrainSettings, step: Step, loss: torch.Tensor, *, stop: bool
) -> Summed:
    """The step's numbers over all ranks, by one collective; `loss` is this rank's sum."""
    own = [
        loss.item(),
        sum(batch.tokens for batch in step.batches),
        sum(batch.area for batch in step.batches),
        device_peak(engine, settings),
        processes.resident("self"),
        len(step.batches),
        stop,
    ]
    accelerator = engine.accelerator
    mine = torch.tensor([own], dtype=torch.float64, device=accelerator.device)
    ranks = accelerator.gather(mine)  # (world, 7)
    loss_sum, tokens, area, all_peaks, host, _, _ = ranks.sum(0).tolist()
    _, _, _, highest_peak, _, micro_batches, stops = ranks.max(0).values.tolist()
    return Summed(
        tokens=int(tokens),
        area=int(area),
        loss=loss_sum / step.target_tokens,
        peak=int(all_peaks if shares_a_device(settings) else highest_peak),
        host=int(host),
        micro_batches=int(micro_batches),
        stop=bool(stops),
    )


def shares_a_device(settings: TrainSettings) -> bool:
    """Whether all ranks fill one memory: the host's, unless each plays a card of its own."""
    return settings.workload.device == "cpu" and settings.workload.memory_limit is None


def device_peak(engine: Engine, settings: TrainSettings) -> int:
    """This rank's peak on its device, bytes; on a card with what torch does not count (the context)."""
    memory = engine.memory
    context = 0
    if settings.workload.device == "cuda" and settings.others:
        free, total = torch.cuda.mem_get_info()
        others = settings.others[engine.accelerator.process_index]
        context = context_bytes(used=total - free, others=others, reserved=memory.resident())
    return context + memory.peak()


def step_record(
    summed: Summed,
    step: Step,
    *,
    number: int,
    effective_batch: int,
    rows: int,
    grad_norm: float,
    skipped: bool,
    learning_rate: float,
    seconds: float,
) -> Mapping[str, Any]:
    """The promised keys; `number` counts optimizer steps from 1."""
    samples = number * effective_batch
    return {
        "step": number,
        "epoch": samples / rows,
        "samples": samples,
        "tokens": summed.tokens,
        "target_tokens": step.target_tokens,
        "loss": summed.loss,
        "grad_norm": grad_norm,
        "skipped": skipped,
        "learning_rate": learning_rate,
        "micro_batches": summed.micro_batches,
        "seconds": seconds,
        "samples_per_second": effective_batch / seconds,
        "tokens_per_second": summed.tokens / seconds,
        "padding": 1 - summed.tokens / summed.area,
        "device_peak_bytes": summed.peak,
        "host_bytes": summed.host,
    }
