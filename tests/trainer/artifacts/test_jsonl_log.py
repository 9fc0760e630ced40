"""Files of JSON lines: right through a kill in the middle of a line, and through a resume."""

import math
from pathlib import Path

import pytest

from autotune.errors import OutputError
from trainer.artifacts.evaluation_log import Best, EvaluationHistory
from trainer.artifacts.jsonl_log import JsonlLog


@pytest.fixture
def journal(tmp_path: Path) -> JsonlLog:
    return JsonlLog(tmp_path / "lines.jsonl")


def test_nothing_was_written_yet(journal: JsonlLog) -> None:
    """No file is no record, and nothing to forget."""
    journal.forget_after(0)

    assert journal.read() == []
    assert EvaluationHistory.of(journal.read()).best is None
    assert not journal.path.exists()


def test_records_are_read_as_they_were_added(journal: JsonlLog) -> None:
    """A number that JSON cannot hold is null."""
    journal.add({"step": 1, "loss": 0.1})
    journal.add({"step": 2, "loss": math.inf})

    assert journal.read() == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": None}]


@pytest.mark.parametrize(
    "torn", ['{"step": 3, "lo', '{"step": 3}', "", "\0\0\0\n", "[3]\n", "{}\n"]
)
def test_what_a_kill_has_torn_is_no_record(journal: JsonlLog, torn: str) -> None:
    """Nor is a line without its end: more may have been meant."""
    journal.add({"step": 1})
    journal.add({"step": 2})
    with journal.path.open("a") as file:
        file.write(torn)

    assert [record["step"] for record in journal.read()] == [1, 2]


def test_a_torn_line_is_gone_before_the_next_is_added(journal: JsonlLog) -> None:
    """They would be one line that nobody reads."""
    journal.add({"step": 1})
    with journal.path.open("a") as file:
        file.write('{"step": 2, "lo')

    journal.forget_after(1)
    journal.add({"step": 2})

    assert journal.path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_steps_after_the_checkpoint_are_forgotten(journal: JsonlLog) -> None:
    """By their number, whatever number of lines there is: evaluations are rare."""
    for step in (4, 8, 12):
        journal.add({"step": step})

    journal.forget_after(9)

    assert [record["step"] for record in journal.read()] == [4, 8]


def test_the_best_is_the_first_of_the_lowest(journal: JsonlLog) -> None:
    """A loss that diverged is none."""
    for step, loss in ((1, math.nan), (2, 3.0), (3, 2.0), (4, 2.0), (5, 2.5)):
        journal.add({"step": step, "loss": loss})

    assert EvaluationHistory.of(journal.read()).best == Best(step=3, loss=2.0)


@pytest.mark.parametrize(
    "damaged",
    [b"\xff\xfe\n", b'{"step": 2, \n', b'{"step": "2"}\n', b'{"step": 2, "a": "\\ud800"}\n'],
)
def test_a_damaged_line_takes_no_other_along(journal: JsonlLog, damaged: bytes) -> None:
    """The rest of a run's losses stay, to the byte."""
    journal.add({"step": 1, "loss": 0.1})
    with journal.path.open("ab") as file:
        file.write(damaged)
    journal.add({"step": 3, "loss": 0.3})

    journal.forget_after(3)

    assert journal.path.read_text() == '{"step": 1, "loss": 0.1}\n{"step": 3, "loss": 0.3}\n'


def test_a_log_is_not_what_a_link_points_to(journal: JsonlLog, tmp_path: Path) -> None:
    """Neither read nor written: the folder may be from someone else."""
    (tmp_path / "precious").write_text("mine")
    journal.path.symlink_to(tmp_path / "precious")

    with pytest.raises(OutputError, match=r"cannot read .*; remove it, or choose"):
        journal.read()
    with pytest.raises(OutputError, match=r"cannot write .*jsonl "):
        journal.add({"step": 1})

    assert (tmp_path / "precious").read_text() == "mine"


def test_a_log_of_no_size_that_a_run_can_have_is_refused(journal: JsonlLog) -> None:
    """One that takes no space on the disk, and memory when it is read."""
    with journal.path.open("wb") as file:
        file.truncate(2**40)

    with pytest.raises(OutputError, match="it has more than 1 GiB"):
        journal.read()


def test_a_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    """Not that the disk is full."""
    journal = JsonlLog(tmp_path / "gone" / "lines.jsonl")

    with pytest.raises(OutputError) as caught:
        journal.add({"step": 1})

    assert str(caught.value) == (
        f"cannot write {journal.path} (No such file or directory): the folder was removed, moved or "
        f"unmounted while the run was in it; put it back to resume from its last checkpoint, or train again"
    )
