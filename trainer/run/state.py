"""A run in progress: its parts, which `setup` builds once, and its position."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from autotune.events import Notice
from autotune.plan import Plan
from trainer.artifacts.evaluation_log import EvaluationHistory
from trainer.artifacts.run_folder import RunFolder
from trainer.config.settings import TrainSettings
from trainer.data.sample_order import GroupedSteps, PlainSteps, SampleOrder, StepOrder
from trainer.evaluation.evaluator import Answering
from trainer.events import Say
from trainer.model.data_fit import max_answer_tokens
from trainer.model.engine import Engine
from trainer.run.parts import Parts

SAVE_SECONDS = 900.0
"""Without --checkpoint-every, a run that is killed loses no more than these seconds and a step."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(slots=True)
class Run:
    """The parts and the position of a run."""

    settings: TrainSettings
    say: Say
    should_stop: Callable[[], bool]
    engine: Engine
    parts: Parts
    folder: RunFolder
    plan: Plan
    steps: int
    learning_rate: float
    done: int = 0
    """Optimizer steps done, including those before a resume."""
    loss: float | None = None
    """Loss of the last step."""
    peak: int = 0
    answering: Answering | None = None
    """None where evaluations generate no answers."""
    evaluations: EvaluationHistory = field(default_factory=EvaluationHistory)
    """The evaluations so far, including those before a resume; the same on every rank."""

    saved_at: float = field(default_factory=lambda: time.monotonic())
    """When the last checkpoint was written, or the run began; `time.monotonic`."""

    @property
    def is_main(self) -> bool:
        return bool(self.engine.accelerator.is_main_process)

    @property
    def own_micro_batch(self) -> int:
        rank: int = self.engine.accelerator.process_index
        return self.plan.sizes[rank]

    @property
    def eval_size(self) -> int:
        """Sequences per forward pass of an evaluation on this rank."""
        return self.settings.eval_batch or self.own_micro_batch

    @property
    def longest_answer(self) -> int:
        """Tokens with the end token: --max-new-tokens or the data's longest, within the model's limit."""
        parts = self.parts
        collators = [c for c in (parts.collator, parts.eval_collator) if c is not None]
        wanted = self.settings.max_new_tokens or max(c.store.longest()[1] for c in collators)
        room = max_answer_tokens(self.engine.unwrapped, collators[-1])
        return wanted if room is None else min(wanted, room)

    @property
    def export_dtype(self) -> torch.dtype:
        """Of the final model's weights: --export-dtype, or the checkpoint's that the run began with."""
        chosen = self.settings.export_dtype
        return self.parts.loaded.original.dtype if chosen == "auto" else DTYPES[chosen]

    def is_due(self, every: int | None) -> bool:
        """Whether the last step is a multiple of `every`; with None, whether it completed an epoch."""
        if every is not None:
            return self.done % every == 0
        rows, effective = len(self.parts.collator.store), self.plan.effective_batch
        return self.done * effective // rows > (self.done - 1) * effective // rows

    def is_long_unsaved(self) -> bool:
        """Whether a checkpoint is due by time; ranks may differ. The user's --checkpoint-every stands alone."""
        by_time = self.settings.checkpoint_every is None
        return by_time and time.monotonic() - self.saved_at >= SAVE_SECONDS

    def note_saved(self) -> None:
        """A checkpoint was written just now."""
        self.saved_at = time.monotonic()

    def order(self) -> StepOrder:
        effective, collator = self.plan.effective_batch, self.parts.collator
        stream = SampleOrder(len(collator.store), self.settings.workload.seed)
        if not self.settings.length_grouping:
            return PlainSteps(stream, effective)
        return GroupedSteps(stream, effective, steps=self.steps, lengths=collator.lengths)

    def notice(self, text: str | None) -> None:
        """Sends a line of text, if there is one, from the main process."""
        if text and self.is_main:
            self.say(Notice(text=text))
