"""The trainer's own step as a workload for probes: `trainer.workload:build`."""

import time
from collections.abc import Sequence
from typing import Any

import trainer.run.loop  # noqa: F401  its libraries are training's: on a CPU they do not count
from autotune.errors import DivergedError
from autotune.partition import Costs
from autotune.plan import Plan, choose_effective
from autotune.tuning.probe import Load
from trainer.batching.collator import Batch
from trainer.batching.step_loader import Steps, load_steps, loaders_memory
from trainer.config.settings import WorkloadSettings
from trainer.data.sample_order import PlainSteps, SampleOrder
from trainer.model.accelerator import make_accelerator, precision
from trainer.model.finite import NotFinite
from trainer.pretrained.loading import fingerprint_info
from trainer.run.parts import make_engine, make_parts

PROBE_LEARNING_RATE = 1e-6
"""The steps are real; the weights are thrown away."""
MIXED_LENGTHS_SEED = 1
TIMED_STEPS = 5
"""Steps whose data wait is timed, after one step that starts the loaders."""
PREFETCH_SECONDS = 1.0
"""The most seconds that loaders get to work ahead between two steps."""


class SftWorkload:
    """Worst-case optimizer steps of supervised fine-tuning."""

    def __init__(
        self, *, effective: int, effective_fixed: bool, eval_data: Sequence[str] = (), **values: Any
    ) -> None:
        settings = WorkloadSettings.from_json(values)
        accelerator = make_accelerator(settings)
        told: list[str] = []
        parts = make_parts(settings, eval_data=tuple(eval_data), notify=told.append)
        store = parts.collator.store
        self._effective = effective
        self._is_fixed = effective_fixed
        self._world_size: int = accelerator.num_processes
        self._collator = parts.collator
        self._eval_collator = parts.eval_collator or parts.collator
        self.engine = make_engine(accelerator, parts, settings)
        self.memory = self.engine.memory
        notices = [*told, *parts.notices(settings), *filter(None, [self.engine.notice])]
        self.workload_info = {
            "model": settings.model,
            "rows": len(store),
            "precision": precision(settings),
            "notice": "; ".join(notices) or None,
            "fingerprint": fingerprint_info(parts.loaded, store, accelerator.num_processes),
        }

    def forward_backward(self, size: int) -> Load:
        batches = self._batches(size)
        self.engine.forward_backward(batches, target_tokens=sum(b.target_tokens for b in batches))
        return Load(sum(b.samples for b in batches), sum(b.tokens for b in batches))

    def mixed_lengths_step(self, size: int) -> None:
        """Runs micro-batches of shuffled rows, each padded to its own longest: full size, half, one row.

        Without a caching allocator they leave nothing behind and only warm up, so an eighth and one row are
        enough: later peaks are within 0.2 % of those after half (t5-8m, 184 sequences; chatlm-tiny, 398).
        """
        rows = len(self._collator.store)
        shuffled = SampleOrder(rows, MIXED_LENGTHS_SEED).take(0, min(size, rows))
        counts = (size, size // 2, 1) if self.memory.caches else (size // 8, 1)
        batches = [self._collator.batch(shuffled[: max(1, count)]) for count in counts]
        self.engine.forward_backward(batches, target_tokens=sum(b.target_tokens for b in batches))

    def optimizer_step(self) -> None:
        try:
            self.engine.optimizer_step(PROBE_LEARNING_RATE)
        except NotFinite as error:
            raise DivergedError(
                f"a {error.part} of {self.workload_info['model']} is not finite (inf or NaN) in "
                f"{self.workload_info['precision']}, at a learning rate of {PROBE_LEARNING_RATE:g}: a run "
                f"would stop there",
                "use --precision fp32 or bf16, or look at the model's weights and the longest rows",
            ) from None

    def evaluate(self, size: int) -> Load:
        batch = self._eval_collator.worst_case_batch(size)
        with self.engine.evaluating():
            self.engine.summed_loss(batch)
        return Load(batch.samples, batch.tokens)

    def data_wait(self, size: int, *, loaders: int, busy: float) -> tuple[float, int]:
        plan, collator = self._plan(size), self._collator
        order = PlainSteps(
            SampleOrder(len(collator.store), MIXED_LENGTHS_SEED), plan.effective_batch
        )
        costs = Costs(longest=collator.longest())
        rank: int = self.engine.accelerator.process_index
        steps = Steps(collator, order, plan, costs=costs, rank=rank)
        waited = 0.0
        batches = iter(load_steps(steps, range(TIMED_STEPS + 1), loaders))
        next(batches)
        for _ in range(TIMED_STEPS):
            if loaders:  # they work while the device does
                time.sleep(min(busy, PREFETCH_SECONDS))
            started = time.perf_counter()
            next(batches)
            waited += time.perf_counter() - started
        return waited / TIMED_STEPS, loaders_memory()

    def dry_run(self, size: int, side: int | None) -> bool:
        collator = self._collator
        batch = collator.worst_case_batch(size) if side is None else collator.one_sided(size, side)
        if batch is not None:
            self.engine.dry_run([batch])
        return batch is not None

    def any_rank(self, claim: bool) -> bool:
        return self.engine.any_rank(claim)

    def _batches(self, size: int) -> list[Batch]:
        """One micro-batch, or two if training accumulates; more take no more memory."""
        return [self._collator.worst_case_batch(size)] * min(2, self._plan(size).accumulation)

    def _plan(self, size: int) -> Plan:
        """The plan as if every rank took that size, or its share of the step if that is smaller."""
        effective = choose_effective(
            size, world_size=self._world_size, wanted=self._effective, fixed=self._is_fixed
        )
        share = -(-effective // self._world_size)
        return Plan(
            micro_batch=min(size, share), effective_batch=effective, world_size=self._world_size
        )


def build(settings: dict[str, Any]) -> SftWorkload:
    """The workload of `WorkloadSettings` as JSON, with `effective`, `effective_fixed` and `eval_data`."""
    return SftWorkload(**settings)
