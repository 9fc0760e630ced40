"""The metrics of an optimizer step over all ranks, as `metrics.jsonl` holds them."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from autotune.devices import processes
from autotune.devices.budget import context_bytes
from trainer.batching.step_loader import RankStep
from trainer.config.settings import WorkloadSettings
from trainer.run.state import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What follows a step on every rank if any rank wants it."""

    stop: bool
    save: bool


def step_record(
    run: Run, step: RankStep, loss: torch.Tensor,
    *, grad_norm: float, learning_rate: float, started: float, own: Wishes,
) -> tuple[dict[str, Any], Wishes]:  # fmt: skip
    """The step's object in `metrics.jsonl`, and the wishes of any rank; one collective.

    `loss` is this rank's sum, `own` its wishes; `started` is the `perf_counter` time at which the step began.
    """
    numbers = [
        loss.item(),
        sum(batch.tokens for batch in step.batches),
        sum(batch.area for batch in step.batches),
        device_peak(run),
        processes.resident("self"),
        len(step.batches),
        own.stop,
        own.save,
    ]
    accelerator = run.engine.accelerator
    mine = torch.tensor([numbers], dtype=torch.float64, device=accelerator.device)
    ranks = accelerator.gather(mine)  # (world, 8)
    loss_sum, tokens, area, all_peaks, host, *_ = ranks.sum(0).tolist()
    _, _, _, highest_peak, _, micro_batches, stop, save = ranks.max(0).values.tolist()
    seconds = time.perf_counter() - started
    effective_batch = run.plan.effective_batch
    samples = run.done * effective_batch
    workload = run.settings.workload
    record = {
        "step": run.done,
        "epoch": samples / len(run.parts.collator.store),
        "samples": samples,
        "tokens": int(tokens),
        "target_tokens": step.target_tokens,
        "loss": loss_sum / step.target_tokens,
        "grad_norm": grad_norm,
        "skipped": run.engine.skipped,
        "learning_rate": learning_rate,
        "micro_batches": int(micro_batches),
        "seconds": seconds,
        "samples_per_second": effective_batch / seconds,
        "tokens_per_second": tokens / seconds,
        "padding": 1 - tokens / area,
        "device_peak_bytes": int(all_peaks if is_shared(workload) else highest_peak),
        "host_bytes": int(host),
    }
    return record, Wishes(stop=bool(stop), save=bool(save))


def is_shared(workload: WorkloadSettings) -> bool:
    """Whether all ranks are on one device: the host's memory. Emulated cards are separate."""
    return workload.device == "cpu" and workload.memory_limit is None


def device_peak(run: Run) -> int:
    """This rank's peak on its device, bytes; with the context of a GPU, or the libraries in host RAM."""
    memory, settings = run.engine.memory, run.settings
    context = memory.outside().libraries if is_shared(settings.workload) else 0
    if settings.workload.device == "cuda" and settings.others:
        free, total = torch.cuda.mem_get_info()
        others = settings.others[run.engine.accelerator.process_index]
        context = context_bytes(total - free - memory.resident(), others)
    return context + memory.peak()
