"""A run in progress: its parts, built once by `preparation`, and where it is."""

from collections.abc import Callable
from dataclasses import dataclass, field

from autotune.plan import Plan
from trainer.artifacts.evaluation_log import EvaluationHistory
from trainer.artifacts.run_folder import RunFolder
from trainer.batching.collator import Collator
from trainer.config.settings import TrainSettings
from trainer.data.sample_order import GroupedSteps, PlainSteps, SampleOrder, StepOrder
from trainer.evaluation.evaluator import Answering
from trainer.messages import Say
from trainer.model.engine import Engine
from trainer.model.loading import Loaded
from trainer.model.position_limits import max_answer_tokens


@dataclass(slots=True)
class Run:
    """What the steps, evaluations and checkpoints of a run work with."""

    settings: TrainSettings
    say: Say
    should_stop: Callable[[], bool]
    engine: Engine
    loaded: Loaded
    collator: Collator
    eval_collator: Collator | None
    folder: RunFolder
    plan: Plan
    steps: int
    learning_rate: float
    parameters: int
    """Of the model, adapters not counted."""
    done: int = 0
    """Optimizer steps done, earlier parts of the run included."""
    loss: float | None = None
    """Of the last step."""
    peak: int = 0
    answering: Answering | None = None
    """None where no evaluation answers anything."""
    progress: EvaluationHistory = field(default_factory=EvaluationHistory)
    """The evaluations so far, earlier parts of the run included; the same on every rank."""

    @property
    def is_main(self) -> bool:
        return bool(self.engine.accelerator.is_main_process)

    @property
    def own_size(self) -> int:
        """This rank's micro-batch."""
        rank: int = self.engine.accelerator.process_index
        return self.plan.sizes[rank]

    @property
    def eval_size(self) -> int:
        """Sequences of this rank's forward pass in an evaluation."""
        return self.settings.eval_batch or self.own_size

    @property
    def longest_answer(self) -> int:
        """Tokens, the end included: what the user says, or what there is in the data, as far as the model goes."""
        collators = [c for c in (self.collator, self.eval_collator) if c is not None]
        wanted = self.settings.max_new_tokens or max(c.store.longest()[1] for c in collators)
        room = max_answer_tokens(self.engine.unwrapped, collators[-1])
        return wanted if room is None else min(wanted, room)

    @property
    def ends_epoch(self) -> bool:
        """Whether the last step completed one."""
        rows, effective = len(self.collator.store), self.plan.effective_batch
        return self.done * effective // rows > (self.done - 1) * effective // rows

    def order(self) -> StepOrder:
        """Which samples each step sees."""
        effective = self.plan.effective_batch
        stream = SampleOrder(len(self.collator.store), self.settings.workload.seed)
        if not self.settings.length_grouping:
            return PlainSteps(stream, effective)
        return GroupedSteps(stream, effective, steps=self.steps, lengths=self.collator.lengths)

    def notice(self, text: str | None) -> None:
        """Says a line, once, from the main process; nothing where there is none."""
        if text and self.is_main:
            self.say({"type": "notice", "text": text})
