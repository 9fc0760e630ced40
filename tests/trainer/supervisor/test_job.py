"""What a command checks and says before any worker starts."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from autotune.errors import DataError
from autotune.events import Emit, Notice
from tests.support.data_files import delimited, json_lines, packed, pairs
from trainer.config.options import AutotuneOptions, TrainOptions
from trainer.supervisor.job import open_train_job, open_tune_job


def test_how_the_data_are_read_is_said_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line for each source, of the training data and of the evaluation's."""
    monkeypatch.chdir(tmp_path)
    packed(delimited(tmp_path, pairs(2)), "gzip")
    json_lines(tmp_path, pairs(2))
    data, eval_data = ("rows.csv.gz",), ("rows.jsonl",)
    events: list[object] = []

    def listen() -> AbstractContextManager[tuple[Emit, Path]]:
        return nullcontext((events.append, tmp_path / "log"))

    with open_train_job(
        TrainOptions(
            profile="small", device="cpu", num_processes=1, data=data, eval_data=eval_data
        ),
        listen=listen,
    ):
        trained = events.copy()
    events.clear()
    with open_tune_job(
        AutotuneOptions(
            base="small", device="cpu", num_processes=1, data=data, eval_data=eval_data
        ),
        workload="trainer.workload:build",
        listen=listen,
    ):
        tuned = events.copy()

    columns = "prompt is the prompt, response the answer"
    assert trained[:2] == tuned[:2] == [
        Notice(text=f"rows.csv.gz: CSV, gzip; {columns}"),
        Notice(text=f"rows.jsonl: JSON lines; {columns}"),
    ]  # fmt: skip


def test_a_wrong_column_ends_the_command_before_it_listens(tmp_path: Path) -> None:
    path = json_lines(tmp_path, pairs(1))
    options = TrainOptions(
        profile="small", device="cpu", num_processes=1, data=(str(path),), prompt_column="ask"
    )

    with (
        pytest.raises(DataError, match=r"has no column ask \(found: prompt, response\)"),
        open_train_job(options, listen=lambda: pytest.fail("it listens")),
    ):
        pass
