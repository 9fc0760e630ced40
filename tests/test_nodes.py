"""What processes must have in common: an error names the process, its node, and what to do."""

from pathlib import Path

import pytest

from autotune.errors import OutputError, UsageError
from trainer.nodes import compare, seen_by_all

RUN = Path("model_save/sft_fast")


def test_processes_that_were_told_the_same_may_train() -> None:
    """Nothing is said."""
    compare([("a", {"micro_batch": 8, "rows": ["x", None]})] * 3)


@pytest.mark.parametrize(
    ("name", "own", "told"),
    [
        ("micro_batch", 4, "process 1 on b has other micro batch (4) than the main process (8)"),
        ("rows", ["y"], "process 1 on b has other rows (y) than the main process (x)"),
    ],
)
def test_a_node_with_other_flags_or_rows_is_refused(name: str, own: object, told: str) -> None:
    """It would train something else without a word."""
    main = {"micro_batch": 8, "rows": ["x"]}

    with pytest.raises(UsageError) as error:
        compare([("a", main), ("b", {**main, name: own})])

    assert told in str(error.value)
    assert "start every node with the same flags, profile and data" in str(error.value)


def test_a_checkpoint_that_all_see_is_where_they_go_on() -> None:
    """Whatever else a node has of its own, or has lost of the older ones."""
    ranks = [("a", ["checkpoint-2", "checkpoint-4"]), ("b", ["checkpoint-4", "checkpoint-6"])]

    assert seen_by_all(RUN, ranks) == ["checkpoint-2", "checkpoint-4"]


def test_a_fresh_start_heeds_no_checkpoint_of_another_node() -> None:
    """What the main process removed may still be seen elsewhere."""
    assert seen_by_all(RUN, [("a", []), ("b", ["checkpoint-4"])]) == []


def test_a_node_that_does_not_see_the_checkpoint_is_told() -> None:
    """It would start anew, beside others that go on."""
    with pytest.raises(OutputError) as error:
        seen_by_all(RUN, [("a", ["checkpoint-4"]), ("a", ["checkpoint-4"]), ("b", [])])

    assert "process 2 on b does not see model_save/sft_fast/checkpoint-4" in str(error.value)
    assert "put --output-dir on a folder that all nodes share" in str(error.value)
