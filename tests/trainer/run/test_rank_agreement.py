"""What processes must have in common: an error names the process, its node, and what to do."""

import pytest

from autotune.errors import UsageError
from trainer.run.rank_agreement import compare


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
