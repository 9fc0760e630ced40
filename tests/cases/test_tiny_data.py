"""A handful of rows: nothing is extrapolated beyond them."""

import json
from pathlib import Path

import pytest

from tests.support.command_toy import TOY
from tests.support.commands import output_of
from trainer.supervisor.tuning import ceiling


def test_a_handful_of_rows_is_the_ceiling(tmp_path: Path) -> None:
    """A card that would hold hundreds gets as many sequences as there are, and that size ran."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "你好吗", "response": "很好"}\n' * 5)

    out = output_of(
        tmp_path, "autotune", "--device", "cpu", "--vram-limit", "1GiB", "--data", str(rows), *TOY,
        "--base", "small", "--json", "--plain",
    )  # fmt: skip

    document = json.loads(out)
    assert document["micro_batch_size"] == 5
    assert max(trial["size"] for trial in document["trials"]) == 5
    assert document["effective_batch_size"] == 16


@pytest.mark.parametrize(
    ("rows", "effective", "most", "expected"),
    [(3, None, None, 3), (3, 64, None, 3), (500, 64, None, 32), (500, None, 7, 7)],
    ids=["rows", "rows below a share", "the share of the effective batch", "--max-batch"],
)
def test_the_ceiling_is_the_smallest_of_what_there_is_use_for(
    rows: int, effective: int | None, most: int | None, expected: int
) -> None:
    """On two processes."""
    found = ceiling(rows, world_size=2, effective=effective, max_batch=most)

    assert found == expected
