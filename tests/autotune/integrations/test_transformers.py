"""transformers' own Trainer, tuned on an emulated card: tiny models, made here."""

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from autotune.api import Found
from autotune.devices.processes import anonymous, trim
from autotune.errors import DataError, NothingFits, UsageError
from autotune.integrations.transformers import MemoryTargetCallback, tune_trainer
from tests.support.toy_workload import MIB

VOCABULARY = 512
EFFECTIVE = 24


@pytest.fixture(scope="module", autouse=True)
def _tiny_models_are_quick() -> Iterator[None]:
    """No threads that spin while they wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows(count: int = 48) -> list[dict[str, list[int]]]:
    """Of 8 to 100 tokens, each its own label."""
    lengths = [8 + (i * 37) % 93 for i in range(count)]
    return [
        {"input_ids": [1 + i] * length, "labels": [1 + i] * length}
        for i, length in enumerate(lengths)
    ]


def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    def padded(name: str, value: int) -> torch.Tensor:
        longest = max(len(row[name]) for row in batch)
        return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in batch])

    return {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100)}


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            n_layer=2, n_embd=64, n_head=2, vocab_size=VOCABULARY, n_positions=128,
            bos_token_id=1, eos_token_id=1, pad_token_id=0,
        )
    )  # fmt: skip


def make(folder: Path, *, size: int = 1, **options: Any) -> Trainer:
    """A trainer with that micro-batch, whose effective batch is always the same."""
    settings = {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": EFFECTIVE // size,
        "max_steps": 3,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        **options.pop("arguments", {}),
    }
    options = {"train_dataset": rows(), "data_collator": collate, **options}
    return Trainer(gpt2(), TrainingArguments(str(folder / "out"), **settings), **options)


def roomy() -> int:
    """Bytes of a card on which every size of these models fits."""
    trim()
    return 2 * anonymous()


def tuned(trainer: Trainer, room: int | None = None) -> Found:
    """Tuned with `room` bytes more than this process holds now; with None everything fits."""
    card = roomy() if room is None else roomy() // 2 + room
    return tune_trainer(trainer, target=0.9 if room is None else 1.0, vram_limit=card)


def state_of(trainer: Trainer) -> list[Any]:
    """All that tuning might change, in order."""
    model: Any = trainer.model
    optimizer = [] if trainer.optimizer is None else [repr(trainer.optimizer.state_dict())]
    return [
        *(tensor.clone() for tensor in model.state_dict().values()),
        torch.get_rng_state(),
        torch.from_numpy(np.random.get_state()[1].astype(np.int64)),  # type: ignore[index]
        random.getstate(),
        model.training,
        [weight.grad is None for weight in model.parameters()],
        *optimizer,
    ]


def same(one: list[Any], other: list[Any]) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one, other, strict=True)
    )


def cut_of(trainer: Trainer) -> tuple[int, int, int]:
    args = trainer.args
    return (
        args.per_device_train_batch_size,
        args.gradient_accumulation_steps,
        trainer.get_total_train_batch_size(args),
    )


def test_the_effective_batch_stays_and_the_log_says_how_it_is_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every size that is tried divides it."""
    trainer = make(tmp_path, size=2)

    found = tuned(trainer)

    assert cut_of(trainer) == (EFFECTIVE, 1, EFFECTIVE)
    assert found.size == EFFECTIVE
    assert all(EFFECTIVE % trial.size == 0 for trial in found.trials)
    assert "micro-batch 2 × accumulation 12 → 24 × 1: the effective batch stays 24" in caplog.text


def test_on_a_small_card_the_micro_batch_is_smaller(tmp_path: Path) -> None:
    """And larger ones that were tried did not fit."""
    trainer = make(tmp_path)

    found = tuned(trainer, 24 * MIB)

    assert 1 <= found.size < EFFECTIVE
    assert found.peak <= found.budget
    assert all(trial.verdict != "fits" for trial in found.trials if trial.size > found.size)
    assert cut_of(trainer) == (found.size, EFFECTIVE // found.size, EFFECTIVE)


def test_tuning_changes_nothing_that_training_depends_on(tmp_path: Path) -> None:
    """Weights, gradients, mode and random numbers."""
    trainer = make(tmp_path)
    assert trainer.model is not None
    trainer.model.eval()
    before = state_of(trainer)

    tuned(trainer)

    assert same(state_of(trainer), before)
    assert (trainer.optimizer, trainer.lr_scheduler) == (None, None)
    assert trainer.state.global_step == 0
    assert trainer.state.log_history == []


def test_an_optimizer_of_the_users_own_keeps_its_state(tmp_path: Path) -> None:
    """One that has trained before, as after a first stage."""
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(**collate(rows(4))).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    trainer = make(tmp_path, optimizers=(optimizer, None))
    trainer.model = trainer.model_wrapped = model
    before = state_of(trainer)

    tuned(trainer)

    assert trainer.optimizer is optimizer
    assert same(state_of(trainer), before)


def test_a_tuned_run_ends_in_the_weights_of_one_that_was_started_with_its_cut(
    tmp_path: Path,
) -> None:
    """Dropout and the order of samples included: nobody can tell that it was tuned."""
    trainer = make(tmp_path)

    found = tuned(trainer)
    trainer.train()
    plain = make(tmp_path, size=found.size)
    plain.train()

    assert trainer.state.global_step == plain.state.global_step == 3
    assert trainer.model is not None
    assert plain.model is not None
    assert same([*trainer.model.parameters()], [*plain.model.parameters()])


class Heard(TrainerCallback):
    """What a callback of the user's is told."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(state.global_step)


def test_the_users_callbacks_hear_of_the_run_alone(tmp_path: Path) -> None:
    """A probe would look like a run of its own, and be reported as one."""
    heard = Heard()
    trainer = make(tmp_path, callbacks=[heard])

    tuned(trainer)
    during = list(heard.steps)
    trainer.train()

    assert during == []
    assert heard.steps == [1, 2, 3]
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_where_nothing_fits_the_trainer_is_as_it_was(tmp_path: Path) -> None:
    """Weights, cut and hooks: a failed train() leaves its NEFTune hook, and noise would double."""
    trainer = make(tmp_path, size=4, arguments={"neftune_noise_alpha": 5.0})
    model: Any = trainer.model
    before = state_of(trainer)

    with pytest.raises(NothingFits):
        tune_trainer(trainer, target=0.1, vram_limit=roomy())

    assert same(state_of(trainer), before)
    assert cut_of(trainer) == (4, 6, EFFECTIVE)
    assert not model.get_input_embeddings()._forward_hooks


def test_a_sequence_to_sequence_trainer_is_tuned_on_both_its_longest_sides(tmp_path: Path) -> None:
    """The longest source and the longest target are of different rows."""
    data = rows(40)
    data[7] = {"input_ids": [5] * 120, "labels": [5] * 2}
    data[9] = {"input_ids": [5] * 2, "labels": [5] * 110}
    seen: list[tuple[int, int]] = []

    def collate_and_note(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        tensors = collate(batch)
        seen.append((tensors["input_ids"].shape[1], tensors["labels"].shape[1]))
        return tensors

    torch.manual_seed(0)
    config = T5Config(
        d_model=32, d_ff=64, d_kv=16, num_heads=2, num_layers=1, vocab_size=VOCABULARY
    )
    config.decoder_start_token_id = 0
    model = T5ForConditionalGeneration(config)
    args = Seq2SeqTrainingArguments(
        str(tmp_path / "out"), per_device_train_batch_size=8, max_steps=1, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Seq2SeqTrainer(model, args, data_collator=collate_and_note, train_dataset=data)

    found = tuned(trainer)
    longest = max(seen)
    trainer.train()

    assert found.size == 8
    assert longest == (120, 110)


def test_rows_that_are_given_are_used_instead(tmp_path: Path) -> None:
    """For a dataset that is a stream, or slow to read."""

    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(rows())

    trainer = make(tmp_path, train_dataset=Stream())

    with pytest.raises(DataError) as caught:
        tuned(trainer)
    found = tune_trainer(trainer, target=0.9, vram_limit=roomy(), longest=rows()[:1])

    assert str(caught.value) == (
        "the train dataset has no length, so its longest rows cannot be looked for; give them as "
        "longest=[...]"
    )
    assert found.size == EFFECTIVE


def test_without_rows_there_is_nothing_to_tune(tmp_path: Path) -> None:
    """As in a trainer that only evaluates."""
    with pytest.raises(DataError, match="there are no rows to make a batch of"):
        tuned(make(tmp_path, train_dataset=None))


@pytest.mark.parametrize("how", ["is_deepspeed_enabled", "is_fsdp_enabled"])
def test_sharded_weights_are_refused(how: str, tmp_path: Path) -> None:
    """They could not be put back."""
    trainer = make(tmp_path)
    setattr(trainer, how, True)

    with pytest.raises(UsageError, match="cannot put back weights that DeepSpeed or FSDP"):
        tuned(trainer)


def test_several_devices_are_refused(tmp_path: Path) -> None:
    """One rank out of memory would leave the others waiting."""
    trainer = make(tmp_path)
    trainer.args._n_gpu = 2

    with pytest.raises(UsageError, match="tune_trainer tunes one device, and this run has 2"):
        tuned(trainer)


def test_a_run_within_its_target_is_watched_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its peak can be read afterwards."""
    watch = MemoryTargetCallback(target=0.9, vram_limit=roomy())

    make(tmp_path, callbacks=[watch]).train()

    assert watch.budget is not None
    assert roomy() // 4 < watch.peak <= watch.budget
    assert caplog.text == ""


def test_a_run_above_its_target_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In every run anew."""
    watch = MemoryTargetCallback(target=0.1, vram_limit="1GiB")
    trainer = make(tmp_path, callbacks=[watch])

    with caplog.at_level(logging.WARNING, logger="chatlm"):
        trainer.train()
        once = len(caplog.records)
        trainer.train()

    assert once == 1
    assert len(caplog.records) == 2
    assert caplog.messages[0].startswith("step 1 peaked at ")
    assert caplog.messages[0].endswith(
        " above the budget of 102 MiB; tune_trainer finds a cut that fits"
    )
