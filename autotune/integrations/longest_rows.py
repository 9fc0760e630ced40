"""The rows of a dataset that make the largest batch, whatever the rows hold.

Rows of token ids are measured as they are. Text, messages and images say nothing of their size in the
model, so each such row is collated alone, and its tensors are measured.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
from torch import Tensor

from autotune.errors import DataError

TrainerRow = Any
"""One sample, as the dataset gives it to the collator; most often a mapping."""
Collate = Callable[[list[TrainerRow]], Any]
Key = Callable[[TrainerRow], float]

TOKENS = "input_ids"


def worst_case_rows(dataset: Any, collate: Collate, key: Key | None = None) -> list[TrainerRow]:
    """The row that is longest in all its columns together, then those that are longest in one.

    Together they are padded to the longest source and the longest target. If one row is the longest
    in all, the shortest row follows: a batch without padding has no mask, and may hold less. With a
    `key` these are the rows with the highest and the lowest value.

    Raises:
        DataError: a dataset without a length, which cannot be read from end to end; rows that cannot be
            measured.
    """
    if dataset is None:
        return []
    if not isinstance(dataset, Sized):
        raise DataError(
            "the train dataset has no length, so its longest rows cannot be looked for",
            "give them as longest=[...]",
        )
    rows: Any = dataset
    numbers = range(len(dataset))
    lengths = _lengths(rows, numbers, collate, key)
    if not lengths:
        return []
    chosen = [max(numbers, key=lambda i: lengths[i].total())]
    for name in lengths[chosen[0]]:
        longest = max(numbers, key=lambda i: lengths[i][name])
        if all(lengths[longest][name] > lengths[i][name] for i in chosen):
            chosen.append(longest)
    shortest = min(numbers, key=lambda i: lengths[i].total())
    if len(chosen) == 1 and lengths[shortest] != lengths[chosen[0]]:
        chosen.append(shortest)
    return [rows[i] for i in chosen]


def _lengths(
    dataset: Any, numbers: Sequence[int], collate: Collate, key: Key | None
) -> list[Counter[str]]:
    """The size of each row by column, or by tensor of the batch that it makes alone."""
    if key is not None:
        return [Counter({"key": key(dataset[i])}) for i in numbers]
    found = []
    for i in numbers:
        sizes = _own_sizes(dataset[i])
        if sizes is None:
            return [_collated_sizes(dataset[j], j, collate) for j in numbers]
        found.append(sizes)
    return found


def _own_sizes(row: TrainerRow) -> Counter[str] | None:
    """Numbers in each column; None if some hold text, messages or images and there are no token ids.

    Beside token ids a text is the one that they were made of, which the Trainer drops.
    """
    if not isinstance(row, Mapping):
        return None
    sizes = {name: _numbers_in(value) for name, value in row.items()}
    is_known = all(
        size is not None or (TOKENS in row and _is_text(row[name])) for name, size in sizes.items()
    )
    return Counter({name: size or 0 for name, size in sizes.items()}) if is_known else None


def _is_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_text, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_text, value))
    return isinstance(value, str)


def _numbers_in(value: Any) -> int | None:
    """How many tokens or pixels the value holds, 0 for a single number; None if it is none of these."""
    if hasattr(value, "shape"):
        return int(np.prod(value.shape))
    if value is None or isinstance(value, bool | int | float):
        return 0
    if not isinstance(value, list | tuple):
        return None
    if all(isinstance(item, bool | int | float) for item in value):
        return len(value)
    inner = [_numbers_in(item) for item in value]
    return None if None in inner else sum(filter(None, inner))


def _collated_sizes(row: TrainerRow, number: int, collate: Collate) -> Counter[str]:
    try:
        batch = collate([row])
    except Exception as error:
        raise DataError(
            f"the collator cannot make a batch of row {number + 1} alone ({type(error).__name__}: {error})",
            "give the longest rows as longest=[...], or a function that measures one as longest=...",
        ) from error
    return Counter({name: tensor.numel() for name, tensor in tensors_of(batch)})


def tensors_of(batch: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a batch by name, in order; a nested one as `outer.inner`."""
    items: Iterable[tuple[Any, Any]]
    if isinstance(batch, Tensor):
        yield name, batch
        return
    if isinstance(batch, Mapping):
        items = batch.items()
    elif isinstance(batch, list | tuple):
        items = enumerate(batch)
    else:
        return
    for inner, value in items:
        yield from tensors_of(value, f"{name}.{inner}" if name else str(inner))
