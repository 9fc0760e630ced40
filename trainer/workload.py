"""The trainer's own step as a workload to be probed: `trainer.workload:build`."""

from typing import Any

import torch

from autotune.plan import Plan, choose_effective
from autotune.probe import Load
from trainer.batches import Batch, Collator
from trainer.engine import Engine, make_accelerator, precision
from trainer.models import Loaded, load_model
from trainer.rows import bundled
from trainer.settings import WorkloadSettings
from trainer.store import TokenStore, open_store

PROBE_LEARNING_RATE = 1e-6
"""A real optimizer step, on weights that nobody keeps."""


class SftWorkload:
    """Worst-case optimizer steps of supervised fine-tuning."""

    def __init__(self, settings: WorkloadSettings, effective: int, *, fixed: bool) -> None:
        accelerator = make_accelerator(settings)
        loaded = load_model(settings.model, dropout=settings.dropout, seed=settings.seed)
        with accelerator.main_process_first():
            store = open_store(
                settings.data or (bundled("train"),),
                loaded.codec,
                max_source=settings.max_source_length,
                max_target=settings.max_target_length,
            )
        self._effective = effective
        self._fixed = fixed
        self._world_size: int = accelerator.num_processes
        self._collator = Collator(
            store, loaded.codec, getattr(loaded.model.config, "decoder_start_token_id", None)
        )
        self.engine = Engine(accelerator, loaded.model, settings)
        self.engine.make_resident(self._collator.worst(1))
        self.memory = self.engine.memory
        self.facts = {
            "model": settings.model,
            "rows": len(store),
            "precision": precision(settings),
            "notice": store.truncation_notice(
                settings.max_source_length, settings.max_target_length
            ),
            "fingerprint": fingerprint_facts(loaded, store, accelerator.num_processes),
        }

    def accumulate(self, size: int) -> Load:
        batches = self._batches(size)
        self.engine.accumulate(batches, target_tokens=sum(b.target_tokens for b in batches))
        return Load(sum(b.samples for b in batches), sum(b.tokens for b in batches))

    def update(self) -> None:
        self.engine.update(PROBE_LEARNING_RATE)

    def any_rank(self, claim: bool) -> bool:
        return self.engine.any_rank(claim)

    def _batches(self, size: int) -> list[Batch]:
        """One micro-batch, or two where training would accumulate: more change no memory."""
        return [self._collator.worst(size)] * min(2, self._accumulation(size))

    def _accumulation(self, size: int) -> int:
        effective = choose_effective(
            size, world_size=self._world_size, wanted=self._effective, fixed=self._fixed
        )
        plan = Plan(micro_batch=size, effective_batch=effective, world_size=self._world_size)
        return plan.accumulation


def fingerprint_facts(loaded: Loaded, store: TokenStore, world_size: int) -> dict[str, Any]:
    """The part of a profile's fingerprint that only a worker can know."""
    longest_source, longest_target = store.longest()
    return {
        "model": loaded.identity,
        "torch": torch.__version__,
        "longest_source": longest_source,
        "longest_target": longest_target,
        "world_size": world_size,
    }


def build(settings: dict[str, Any]) -> SftWorkload:
    """The workload of those plain settings: `WorkloadSettings` and how the effective batch is set."""
    values = dict(settings)
    effective, fixed = values.pop("effective"), values.pop("effective_fixed")
    return SftWorkload(WorkloadSettings.from_json(values), effective, fixed=fixed)
