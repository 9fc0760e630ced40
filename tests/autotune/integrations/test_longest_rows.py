"""The rows of a worst-case batch: token ids as they are, all else by the tensors that it becomes."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autotune.errors import DataError
from autotune.integrations.longest_rows import worst_case_rows


def refuse(rows: list[Any]) -> Any:
    raise AssertionError("token ids need no collator")


def words(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A token for each word, and none for a space: the longest text is not the one with most tokens."""
    counts = [len(row["text"].split()) for row in rows]
    return {"input_ids": torch.ones(len(rows), max(counts), dtype=torch.long)}


def test_the_worst_rows_are_the_longest_of_all_and_those_longest_in_one_column() -> None:
    """A row that is longest in two columns is taken once; numbers and texts have no length."""
    data: list[Any] = [
        {"input_ids": [0] * 5, "labels": [0] * 5, "text": "a very long text", "label": 1},
        {"input_ids": [0] * 9, "labels": [0] * 1, "text": "", "label": 1},
        {"input_ids": torch.zeros(2), "labels": [0] * 7, "text": "", "label": 0},
    ]

    chosen = worst_case_rows(data, refuse)

    assert [data.index(row) for row in chosen] == [0, 1, 2]
    assert worst_case_rows(data[:2], refuse) == data[:2]
    assert worst_case_rows([], refuse) == []


def test_where_one_row_is_longest_in_all_the_shortest_makes_a_mask_necessary() -> None:
    """Rows of one length leave nothing to pad."""
    rows: list[Any] = [{"ids": [0] * n, "labels": [0] * n} for n in (7, 3, 9, 5)]

    assert worst_case_rows(rows, refuse) == [rows[2], rows[1]]
    assert worst_case_rows([rows[0], rows[0]], refuse) == [rows[0]]


def test_numbers_in_lists_of_lists_are_counted() -> None:
    """Boxes beside the tokens, pixels as nested lists or arrays, missing values."""
    rows: list[Any] = [
        {
            "input_ids": [1] * 3,
            "boxes": [[1, 2], [3, 4]],
            "pixels": np.zeros((2, 2)),
            "score": None,
        },
        {"input_ids": [1] * 3, "boxes": [[1, 2]], "pixels": np.zeros((4, 4)), "score": 0.5},
    ]

    assert worst_case_rows(rows, refuse) == [rows[1], rows[0]]


def test_texts_are_measured_in_tokens() -> None:
    """By the collator, which is given one row at a time."""
    rows = [{"text": "one   long-text-of-two-words"}, {"text": "a b c d e"}, {"text": "x"}]

    assert worst_case_rows(rows, words) == [rows[1], rows[2]]


def test_conversations_are_measured_as_they_are_templated() -> None:
    """`messages`, or `prompt` and `completion`, as TRL's trainers take them."""

    def collate(rows: list[Any]) -> Any:
        texts = [" ".join(m["content"] for m in row["messages"]) for row in rows]
        return words([{"text": text} for text in texts])

    def turns(*contents: str) -> Any:
        return {"messages": [{"role": "user", "content": content} for content in contents]}

    rows = [turns("a"), turns("b c", "d e f"), turns("g", "h", "i j")]

    assert worst_case_rows(rows, collate) == [rows[1], rows[0]]


def test_images_are_measured_in_pixels_beside_their_text() -> None:
    """The largest image and the longest text are of different rows."""

    def collate(rows: list[Any]) -> Any:
        pixels = [torch.from_numpy(np.array(row["image"])) for row in rows]
        return {"pixel_values": torch.stack(pixels), "text": words(rows)}

    rows = [
        {"image": Image.new("RGB", (4, 4)), "text": "a b c"},
        {"image": Image.new("RGB", (8, 8)), "text": "a"},
    ]

    assert worst_case_rows(rows, collate) == [rows[1], rows[0]]


def test_rows_that_are_no_mappings_are_collated_too() -> None:
    """Pairs of an image and its class, as torchvision's datasets give."""
    rows = [(torch.zeros(n), 1) for n in (3, 5, 4)]

    chosen = worst_case_rows(rows, torch.utils.data.default_collate)

    assert [len(pixels) for pixels, _ in chosen] == [5, 3]


def test_a_function_measures_instead_of_the_collator() -> None:
    """Its highest and its lowest row."""
    rows = [{"text": "a"}, {"text": "abc"}, {"text": ""}]

    assert worst_case_rows(rows, refuse, lambda row: len(row["text"])) == [rows[1], rows[2]]


def test_a_row_that_cannot_be_collated_alone_is_named() -> None:
    """With what the collator said, and both ways out."""
    with pytest.raises(DataError) as caught:
        worst_case_rows([{"text": "a"}, {"words": "b"}], words)

    assert str(caught.value) == (
        "the collator cannot make a batch of row 2 alone (KeyError: 'text'); give the longest rows as "
        "longest=[...], or a function that measures one as longest=..."
    )
