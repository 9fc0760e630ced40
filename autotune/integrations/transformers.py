"""The tuner for users of transformers' own Trainer: tune it once, then check that the run holds the target.

    tune_trainer(trainer, target=0.6)
    trainer.train()

A callback alone cannot tune: the Trainer gives callbacks no reference to itself, and reads its batch
size before it calls the first one (transformers 5.23: `_train_batch_size` in `__init__`). A callback
can watch the peak of the run.
"""

import copy
import logging
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import (
    DefaultFlowCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers import logging as transformers_logging
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from autotune.api import Found, find_micro_batch
from autotune.devices.current import OwnDevice, own_device
from autotune.errors import DataError, UsageError
from autotune.events import Emit
from autotune.files import temporary_files
from autotune.integrations.batch_check import HINT, BatchCheck
from autotune.integrations.longest_rows import Collate, Key, TrainerRow, worst_case_rows
from autotune.units import check_fraction, format_bytes, parse_bytes

log = logging.getLogger("chatlm")


def tune_trainer(
    trainer: Trainer,
    *,
    target: float,
    vram_limit: int | str | None = None,
    longest: Sequence[TrainerRow] | Key | None = None,
    emit: Emit | None = None,
) -> Found:
    """Sets the largest micro-batch that holds the target; the effective batch stays what it is.

    Call it before `trainer.train()`. It tries only sizes that divide `per_device_train_batch_size ×
    gradient_accumulation_steps`, by the trainer's own training on a worst-case batch: the `longest`
    rows, or those of the train dataset, which it reads once from end to end. Rows of text, messages or
    images are collated one by one to measure them; a function as `longest` measures a row instead. It
    restores weights, optimizer and random numbers.

    Raises:
        NothingFits: not even one sample; the trainer is as it was.
        UsageError: several processes or devices, DeepSpeed or FSDP; batches that are not of the size or the
            rows that were asked for, as of a dataloader with a batch size or a dataset of its own.
        DataError: no rows to make the worst-case batch of, or rows that cannot be measured.
    """
    args = trainer.args
    if args.world_size > 1 or args.n_gpu > 1:
        raise UsageError(
            f"tune_trainer tunes one device, and this run has {max(args.world_size, args.n_gpu)}",
            "tune in one process on one card, and give all of them the size that it finds",
        )
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise UsageError(
            "tune_trainer cannot put back weights that DeepSpeed or FSDP have sharded",
            "tune a copy of the run by find_micro_batch with a workload in a worker process",
        )
    before = (args.per_device_train_batch_size, args.gradient_accumulation_steps)
    effective = before[0] * before[1]
    with _kept(trainer):
        if longest is None or callable(longest):
            rows = worst_case_rows(trainer.train_dataset, row_collator(trainer), longest)
        else:
            rows = list(longest)
        if not rows:
            raise DataError(
                "there are no rows to make a batch of", "give the trainer a train_dataset"
            )
        found = find_micro_batch(
            ShadowTrainer(trainer, rows, effective),
            ceiling=effective,
            target=target,
            vram_limit=vram_limit,
            divides=effective,
            emit=emit,
        )
    args.per_device_train_batch_size = found.size
    args.gradient_accumulation_steps = effective // found.size
    trainer._train_batch_size = found.size  # read from args by __init__ alone
    log.warning(
        "micro-batch %d × accumulation %d → %d × %d: the effective batch stays %d; peak %s of %s",
        *before,
        found.size,
        args.gradient_accumulation_steps,
        effective,
        format_bytes(found.peak),
        format_bytes(found.budget),
    )
    return found


class MemoryTargetCallback(TrainerCallback):
    """Watches that a run holds its memory target, and says so once when a step does not.

    Trainer(..., callbacks=[MemoryTargetCallback(target=0.6)])

    `peak` is the highest of all steps so far, others' memory subtracted, `budget` what it may be.
    """

    def __init__(self, target: float, vram_limit: int | str | None = None) -> None:
        self._target = check_fraction(target, "target")
        self._limit = parse_bytes(vram_limit) if isinstance(vram_limit, str) else vram_limit
        self._device: OwnDevice | None = None
        self._open = ExitStack()
        self._warned = False
        self.peak = 0
        self.budget: int | None = None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._open.close()  # of a run that an exception ended
        self._device = self._open.enter_context(own_device(self._target, self._limit))
        self._warned = False
        self.peak = 0
        self.budget = self._device.budget.budget
        self._device.memory.reset_peak()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self._device is not None
        assert self.budget is not None
        self.peak = max(self.peak, self._device.peak())
        if self.peak > self.budget and not self._warned:
            self._warned = True
            log.warning(
                "step %d peaked at %s, above the budget of %s; tune_trainer finds a cut that fits",
                state.global_step,
                format_bytes(self.peak),
                format_bytes(self.budget),
            )

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self._open.close()


def row_collator(trainer: Trainer) -> Collate:
    """What the trainer's dataloader makes batches by: the collator, less the columns that it drops."""
    loader: Any = None

    def collate(rows: list[TrainerRow]) -> Any:
        nonlocal loader
        if loader is None:
            shadow = copy.copy(trainer)
            shadow.args, shadow.train_dataset = _quiet(trainer.args), rows
            loader = shadow.get_train_dataloader()
        return (getattr(loader, "collate_fn", None) or trainer.data_collator)(rows)

    return collate


class ShadowTrainer:
    """`trainer.train()` for one optimizer step on a worst-case batch, by a shadow of the trainer.

    The shadow shares model and accelerator; its optimizer lives from step to step. It has none of
    the callbacks, writes nothing and logs nowhere.
    """

    def __init__(self, trainer: Trainer, rows: Sequence[TrainerRow], effective: int) -> None:
        self._rows = rows
        self._effective = effective
        self._trainer = copy.copy(trainer)
        self._trainer.args = _quiet(trainer.args)
        self._trainer.model_init = None  # type: ignore[assignment]  # train() would build it anew
        self._trainer.lr_scheduler = None
        self._check = BatchCheck(trainer.data_collator)
        self._trainer.data_collator = self._check.collate
        self._trainer.control = TrainerControl()
        self._trainer.callback_handler = CallbackHandler(  # type: ignore[no-untyped-call]
            [DefaultFlowCallback()], trainer.model, trainer.processing_class, None, None
        )
        self.__name__ = type(trainer.model).__name__

    def __call__(self, size: int) -> None:
        accumulation = min(2, self._effective // size)  # more take no more memory
        shadow = self._trainer
        shadow._train_batch_size = shadow.args.per_device_train_batch_size = size
        shadow.args.gradient_accumulation_steps = accumulation
        others = self._rows[1:size]  # one of each row, and the rest the longest of all
        batch = [self._rows[0]] * (size - len(others)) + list(others)
        shadow.train_dataset = rows = ProbeRows(batch, 2 * accumulation)
        assert shadow.model is not None
        try:
            with self._check.watching(shadow.model, size):
                shadow.train()
        finally:
            hook = getattr(shadow, "neftune_hook_handle", None)
            if hook is not None:  # a train() that fails leaves it in place
                hook.remove()
        if not rows.is_read:
            raise UsageError(
                f"at micro-batch {size} the train dataloader read none of the longest rows: it has a dataset "
                f"of its own",
                HINT,
            )


class ProbeRows(Dataset[TrainerRow]):
    """The same rows again and again; a sampler of the user's may ask for any row of the real dataset.

    There are twice as many as a step takes, so that a dataloader with larger batches of its own shows.
    """

    def __init__(self, batch: Sequence[TrainerRow], times: int) -> None:
        self._batch = batch
        self._times = times
        is_read: Any = torch.zeros((), dtype=torch.bool)
        self._is_read = is_read.share_memory_()  # a loader's worker may read

    @property
    def is_read(self) -> bool:
        """Whether a dataloader has read a row."""
        return bool(self._is_read)

    def __len__(self) -> int:
        return len(self._batch) * self._times

    def __getitem__(self, number: int) -> TrainerRow:
        self._is_read.fill_(True)
        return self._batch[number % len(self._batch)]


def _quiet(args: TrainingArguments) -> TrainingArguments:
    """The arguments of one step that leaves no trace."""
    args = copy.copy(args)
    args.max_steps = 1
    args.save_strategy = SaveStrategy.NO
    args.eval_strategy = args.logging_strategy = IntervalStrategy.NO
    args.eval_on_start = args.load_best_model_at_end = args.push_to_hub = False
    args.logging_first_step = args.auto_find_batch_size = False
    args.train_sampling_strategy = "sequential"  # keeps the order of the rows
    args.disable_tqdm = args.skip_memory_metrics = True
    args.dataloader_num_workers = 0
    args.dataloader_prefetch_factor = None
    args.dataloader_persistent_workers = False
    return args


@contextmanager
def _kept(trainer: Trainer) -> Iterator[None]:
    """Puts the trainer back as it was, and keeps transformers' log quiet meanwhile.

    The weights are kept in a file: on a CPU a copy in memory would count in every peak.
    """
    model = trainer.model
    assert model is not None
    parts = [p for p in (trainer.optimizer, trainer.accelerator.scaler) if p is not None]
    was_training = model.training
    numbers = random.getstate(), np.random.get_state()
    verbosity = transformers_logging.get_verbosity()
    cards = [trainer.args.device] if trainer.args.device.type == "cuda" else []
    with temporary_files():
        kept = tempfile.TemporaryFile()  # noqa: SIM115  closed below
    with kept as file, torch.random.fork_rng(cards):
        states = [part.state_dict() for part in parts]
        torch.save((_changing(model), states), file)
        del states
        try:
            transformers_logging.set_verbosity(max(verbosity, logging.WARNING))
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            random.setstate(numbers[0])
            np.random.set_state(numbers[1])
            trainer.accelerator.free_memory()
            model.zero_grad()
            model.train(was_training)
            file.seek(0)
            tensors, states = torch.load(file, map_location="cpu", weights_only=False)
            for tensor, before in zip(_changing(model), tensors, strict=True):
                tensor.copy_(before)
            for part, state in zip(parts, states, strict=True):
                part.load_state_dict(state)


def _changing(model: torch.nn.Module) -> list[torch.Tensor]:
    """What training changes in place: weights that learn, and buffers like running means."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return [tensor.detach() for tensor in (*weights, *model.buffers())]
