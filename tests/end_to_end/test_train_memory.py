"""What a run says and does about its memory while it trains."""

from pathlib import Path

from tests.support.runs import notices, rows_file, run, settings

TIB = 2**40


def test_a_peak_above_the_budget_is_said_once(tmp_path: Path) -> None:
    """Of each of the two budgets the larger counts: which device peaked is not known."""
    rows = rows_file(tmp_path / "rows.jsonl", 40)

    above = run(settings(rows, tmp_path / "above", budgets=(1, 2**20), max_steps=3))
    within = run(settings(rows, tmp_path / "within", budgets=(1, TIB), max_steps=3))

    (said,) = [text for text in notices(above) if "peaked" in text]
    assert said.startswith("the run peaked at ")
    assert "by step 1, above the budget of 1.00 MiB; a smaller --micro-batch" in said
    assert not [text for text in notices(within) if "peaked" in text]
