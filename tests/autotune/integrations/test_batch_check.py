"""A Trainer whose batches are not of the size that was asked for is refused, and one whose are is tuned."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
from transformers import Trainer, TrainingArguments

from autotune.errors import UsageError
from autotune.integrations.batch_check import sequences_in
from autotune.integrations.transformers import tune_trainer
from tests.autotune.integrations.test_transformers import (
    EFFECTIVE,
    collate,
    cut_of,
    gpt2,
    roomy,
    rows,
    tuned,
)

TRAINER = (
    "let the Trainer make the train dataloader with per_device_train_batch_size, or tune your own "
)
OWN = "the train dataloader has a batch size of its own; " + TRAINER + "step by find_micro_batch"


def made(
    kind: type[Trainer], folder: Path, *, effective: int = EFFECTIVE, **options: Any
) -> Trainer:
    """A trainer of that class."""
    args = TrainingArguments(
        str(folder / "out"), per_device_train_batch_size=1, gradient_accumulation_steps=effective,
        max_steps=2, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
        logging_strategy="no", remove_unused_columns=False,
    )  # fmt: skip
    options = {"train_dataset": rows(), "data_collator": collate, **options}
    return kind(gpt2(), args, **options)


class OwnLoader(Trainer):
    """Its loader has batches of 4, over a dataset of its own."""

    def get_train_dataloader(self) -> Any:
        return DataLoader(rows(), batch_size=4, collate_fn=collate)  # type: ignore[arg-type]


class OwnBatches(Trainer):
    """Its loader has batches of 4, of the trainer's dataset by the trainer's collator."""

    def get_train_dataloader(self) -> Any:
        sampler = BatchSampler(SequentialSampler(self.train_dataset), 4, drop_last=False)  # type: ignore[arg-type]
        return DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=self.data_collator)  # type: ignore[arg-type]


@pytest.mark.parametrize("effective", [1, EFFECTIVE])
@pytest.mark.parametrize(
    ("kind", "seen"),
    [
        (OwnLoader, "the model's forward pass saw 4 sequences"),
        (OwnBatches, "the collator was given "),
    ],
)
def test_a_dataloader_with_a_batch_size_of_its_own_is_refused(
    kind: type[Trainer], seen: str, effective: int, tmp_path: Path
) -> None:
    """Whatever sizes there are to try; the trainer stays as it was."""
    trainer = made(kind, tmp_path, effective=effective)
    before = cut_of(trainer)

    with pytest.raises(UsageError) as caught:
        tuned(trainer)

    assert str(caught.value).startswith(f"at micro-batch 1 {seen}")
    assert str(caught.value).endswith(OWN)
    assert cut_of(trainer) == before


def test_a_dataloader_with_a_dataset_of_its_own_is_refused(tmp_path: Path) -> None:
    """Its batches are of the size, but not of the longest rows: the size would be too large for those."""

    class Own(Trainer):
        def get_train_dataloader(self) -> Any:
            size = self._train_batch_size
            return DataLoader(rows(), batch_size=size, collate_fn=self.data_collator)  # type: ignore[arg-type]

    with pytest.raises(UsageError) as caught:
        tuned(made(Own, tmp_path))

    assert str(caught.value) == (
        "at micro-batch 1 the train dataloader read none of the longest rows: it has a dataset of its own; "
        + TRAINER
        + "step by find_micro_batch"
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_an_override_that_keeps_the_size_is_tuned(workers: int, tmp_path: Path) -> None:
    """It is what ran that counts, not whether the method is replaced, nor which process read the rows."""

    class Own(Trainer):
        def get_train_dataloader(self) -> Any:
            size = self._train_batch_size
            return DataLoader(
                self.train_dataset, batch_size=size, collate_fn=collate, num_workers=workers  # type: ignore[arg-type]
            )  # fmt: skip

    assert tuned(made(Own, tmp_path)).size == EFFECTIVE


def test_a_sampler_that_knows_the_real_dataset_alone_is_tuned(tmp_path: Path) -> None:
    """It asks for rows that a probe's few do not have."""

    class Weighted(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return RandomSampler(rows())

    assert tuned(made(Weighted, tmp_path)).size == EFFECTIVE


def drop_some(batch: list[Any]) -> Any:
    """Without rows that are too long: the longest, which a probe is made of."""
    return collate([row for row in batch if len(row["input_ids"]) < 60] or batch[-1:])


def test_a_collator_that_drops_rows_is_refused(tmp_path: Path) -> None:
    """A probe would measure fewer sequences than training has."""
    trainer = made(Trainer, tmp_path, data_collator=drop_some)

    with pytest.raises(UsageError) as caught:
        tuned(trainer)

    assert (
        "sequences: the collator drops rows, or adds some; let it make the same number of "
        in str(caught.value)
    )


def test_a_collator_with_two_sequences_for_each_row_is_tuned(tmp_path: Path) -> None:
    """As for pairs of answers: both are in each size's measurement."""
    trainer = made(Trainer, tmp_path, data_collator=lambda batch: collate([*batch, *batch]))

    assert tuned(trainer).size == EFFECTIVE


def flatten(batch: list[Any]) -> dict[str, torch.Tensor]:
    """All rows in one, without padding."""
    ids = torch.tensor([[token for row in batch for token in row["input_ids"][:5]]])
    positions = torch.tensor([[i for row in batch for i in range(len(row["input_ids"][:5]))]])
    return {"input_ids": ids, "position_ids": positions, "labels": ids.clone()}


def test_a_collator_without_padding_is_tuned(tmp_path: Path) -> None:
    """Its positions begin anew with each sequence."""
    assert tuned(made(Trainer, tmp_path, data_collator=flatten)).size == EFFECTIVE


def collate_texts(batch: list[dict[str, str]]) -> dict[str, torch.Tensor]:
    return collate(
        [
            {name: [1] * len(row["text"].split()) for name in ("input_ids", "labels")}
            for row in batch
        ]
    )


@pytest.mark.parametrize("longest", [None, lambda row: len(row["text"]), [{"text": "a " * 90}]])
def test_a_dataset_of_texts_is_tuned_on_its_longest(longest: Any, tmp_path: Path) -> None:
    """By the collator, a function, or rows that are given; every probe holds the longest."""
    seen: list[int] = []

    def note(batch: list[dict[str, str]]) -> dict[str, torch.Tensor]:
        tensors = collate_texts(batch)
        seen.append(tensors["input_ids"].shape[1])
        return tensors

    texts = [{"text": "a " * (1 + 7 * i % 90)} for i in range(60)]
    data_longest = max(len(row["text"].split()) for row in texts)
    trainer = made(Trainer, tmp_path, train_dataset=texts, data_collator=note)

    found = tune_trainer(trainer, target=0.9, vram_limit=roomy(), longest=longest)

    measured = seen[len(texts) :] if longest is None else seen  # the first ones measure single rows
    assert found.size == EFFECTIVE
    assert set(measured) == {90 if isinstance(longest, list) else data_longest}


def test_sequences_are_counted_in_what_the_forward_pass_takes() -> None:
    """By the token ids where there are some, else by the first tensor; in one row by the positions."""
    ids, pixels = torch.ones(3, 5), torch.ones(7, 2)
    one_row, positions = torch.ones(1, 6), torch.tensor([[0, 1, 2, 0, 1, 0]])

    assert sequences_in({"pixel_values": pixels, "input_ids": ids}) == 3
    assert sequences_in({"pixel_values": pixels}) == 7
    assert sequences_in((pixels,)) == 7
    assert sequences_in({"input_ids": one_row, "position_ids": positions}) == 3
    assert sequences_in({"input_ids": one_row}) == 1
    assert sequences_in({"scale": torch.tensor(2.0)}) is None
