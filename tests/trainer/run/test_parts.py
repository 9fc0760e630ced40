"""What each command says of tokens that were damaged on the disk."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.runs import notices, rows_file, run, settings
from trainer.config.options import DataOptions
from trainer.config.settings import TrainSettings
from trainer.supervisor.inspection import inspect_data
from trainer.workload import build


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainSettings:
    monkeypatch.setenv("CHATLM_CACHE", str(tmp_path / "cache"))
    return settings(rows_file(tmp_path / "rows.jsonl", 20), tmp_path / "run", max_steps=1)


def damaged(folder: Path) -> str:
    """The line that a user should get."""
    (store,) = (folder / "cache").glob("[!.]*")
    content = bytearray((store / "tokens.bin").read_bytes())
    content[0] ^= 1
    (store / "tokens.bin").write_bytes(content)
    return f"the token store {store} was damaged (tokens.bin has another checksum): the data are tokenised again"


def test_a_run_tells_it_once_and_trains_on_the_right_tokens(
    chosen: TrainSettings, tmp_path: Path
) -> None:
    """The evaluation has the same store."""
    chosen = replace(chosen, eval_data=chosen.workload.data)
    run(chosen)
    line = damaged(tmp_path)

    second = run(replace(chosen, fresh=True))

    assert notices(second).count(line) == 1


def test_a_tuning_tells_it(chosen: TrainSettings, tmp_path: Path) -> None:
    """Before what else is said of the data."""
    values = {**chosen.workload.as_json(), "effective": 8, "effective_fixed": True}
    build(values)
    line = damaged(tmp_path)

    info = build(values).workload_info

    assert str(info["notice"]).split("; ")[0] == line


def test_chatlm_data_tells_it(chosen: TrainSettings, tmp_path: Path) -> None:
    options, files = DataOptions(), list(chosen.workload.data)
    inspect_data(options, files)
    line = damaged(tmp_path)

    assert inspect_data(options, files).notices == (line,)
    assert inspect_data(options, files).notices == ()
