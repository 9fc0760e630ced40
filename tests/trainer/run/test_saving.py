"""When a run saves a checkpoint."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.runs import Messages, rows_file, run, settings
from trainer.events import CheckpointSaved
from trainer.run import state


def saved(said: Messages) -> list[int]:
    return [event.step for event in said if isinstance(event, CheckpointSaved)]


@pytest.mark.parametrize(
    ("seconds", "every", "expected"),
    [
        (900.0, None, [5]),
        (0.0, None, [1, 2, 3, 4, 5, 6, 7]),
        (0.0, 3, [3, 6]),
    ],
)
def test_checkpoints_are_saved_each_epoch_and_by_time_unless_the_user_chose_steps(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    every: int | None,
    expected: list[int],
) -> None:
    """An epoch is 5 steps of 8 rows. The last step leaves the model itself."""
    assert state.SAVE_SECONDS == 900.0
    monkeypatch.setattr(state, "SAVE_SECONDS", seconds)
    rows = rows_file(tmp_path / "rows.jsonl", 40)

    said = run(settings(rows, tmp_path / "run", checkpoint_every=every))

    assert saved(said) == expected


def test_the_time_counts_from_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reading of this clock is 300 s after the one before: one a step, and one a checkpoint."""
    readings = iter(range(0, 10**6, 300))
    monkeypatch.setattr(state, "time", SimpleNamespace(monotonic=lambda: next(readings)))
    rows = rows_file(tmp_path / "rows.jsonl", 400)

    said = run(settings(rows, tmp_path / "run", checkpoint_every=None))

    assert saved(said) == [3, 6]
