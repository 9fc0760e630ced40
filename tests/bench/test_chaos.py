"""The bench of disturbances: its judge can fail, its table is the result's, and some real runs are struck."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import chaos, chaos_damage, chaos_judge, chaos_kills, chaos_place
from bench.chaos import PAGE, RESULT, as_document, line, one, read, table, with_table, words
from bench.chaos_case import Case, Row, Strike, chain, ended
from bench.chaos_disks import KIB, RESUMES, full
from bench.chaos_place import Ground, Place
from bench.processes import send, stop
from tests.bench.test_kills import run as finished_run

TRACEBACK = "Traceback (most recent call last):\n  File x\nOSError: [Errno 28] No space left\n"


def finished(folder: Path, **changes: Any) -> Path:
    """A finished run of one step with a model."""
    path = finished_run(folder, **changes)
    (path / "config.json").write_text("{}")
    return path


def row(**changes: Any) -> Row:
    values = {"case": "kills", "done": "SIGKILL of x", "phase": "saving", "exit": "1", "said": "so"}
    return Row(**{**values, "lost": "2 steps", "steps_lost": 2, **changes})


def test_a_planted_traceback_is_found() -> None:
    """On the terminal, with its last line; so is an error that Python only prints."""
    assert chaos_judge.tracebacks("chatlm: the disk is full\n") == []
    assert chaos_judge.tracebacks(f"step 1\n{TRACEBACK}") == [
        "a raw traceback (OSError: [Errno 28] No space left)"
    ]
    assert chaos_judge.tracebacks("Exception ignored in: <x>\n") == ["a raw traceback (?)"]


def test_a_wrong_exit_code_and_one_that_nothing_explains_are_found() -> None:
    """Exit 1 owes a line of chatlm's."""
    assert chaos_judge.exits(130, "", (0, 130)) == []
    assert chaos_judge.exits(1, "chatlm: the disk is full", (1,)) == []
    assert chaos_judge.exits(-2, "", (130,)) == ["exit -2 instead of 130"]
    assert chaos_judge.exits(1, "step 1", (0, 1)) == ["exit 1 without a line that says why"]
    assert chaos_judge.says("the run is back", "is lost") == ["does not say 'is lost'"]


@pytest.mark.parametrize(
    "name", [".aside", ".replaced", ".removing-checkpoint-2", ".checkpoint-4", ".model", ".lock"]
)
def test_what_is_left_in_a_finished_run_is_found(name: str, tmp_path: Path) -> None:
    """Hidden names in the run's folder, and half-made stores of tokens."""
    output, cache = finished(tmp_path / "run"), tmp_path / "cache"
    cache.mkdir()
    before = chaos_judge.leftovers(output, cache)
    (output / name).mkdir()
    (cache / ".partial-1").mkdir()

    assert before == []
    assert chaos_judge.leftovers(output, cache) == [f"left: {name}, .partial-1"]


def test_a_lost_step_and_a_lost_checkpoint_are_found() -> None:
    """Beyond what the strike may cost."""
    assert chaos_judge.lost(steps=5, newest=4, before=2, most=2) == []
    assert chaos_judge.lost(steps=5, newest=4, before=4, most=0) == [
        "1 steps are lost, not 0 at most"
    ]
    assert chaos_judge.lost(steps=2, newest=2, before=4, most=2) == [
        "checkpoint-4 is gone, the newest is of step 2"
    ]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"weight": 1.001}, "weights differ by 1e-03"),
        ({"loss": 2.1}, "losses differ by 5e-02"),
        ({"samples": 32}, "the metrics' lines differ"),
    ],
)
def test_a_run_that_ends_otherwise_is_found(
    change: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    """In a weight, a loss or the samples of a step."""
    whole = finished(tmp_path / "whole")

    assert chaos_judge.differs(whole, finished(tmp_path / "alike")) == []
    assert chaos_judge.differs(whole, finished(tmp_path / "other", **change)) == [fault]


def test_a_run_that_lost_its_evaluations_or_a_line_is_found(tmp_path: Path) -> None:
    """A file that is missing is named; so is another number of lines."""
    whole, other = finished(tmp_path / "whole"), finished(tmp_path / "other")
    (other / "evaluations.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    lines = (other / "metrics.jsonl").read_text()
    (other / "metrics.jsonl").write_text(lines * 2)
    differing = chaos_judge.differs(whole, other)
    (other / "evaluations.jsonl").unlink()

    assert differing == ["2 lines of metrics instead of 1", "the evaluations differ"]
    assert chaos_judge.differs(whole, other) == ["evaluations.jsonl missing"]


def test_a_touched_canary_is_found(tmp_path: Path) -> None:
    """A file that came, one that changed and a link that leads elsewhere."""
    (tmp_path / "canary").write_text("mine")
    (tmp_path / "link").symlink_to("canary")
    before = chaos_judge.content(tmp_path)
    (tmp_path / "canary").write_text("yours")
    (tmp_path / "new").touch()
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("new")

    assert chaos_judge.touched(before, before, "outside") == []
    assert chaos_judge.touched(before, chaos_judge.content(tmp_path), "outside") == [
        "outside changed: canary, link, new"
    ]


def test_a_process_that_outlives_its_command_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a value in its environment, also where it stands still."""
    monkeypatch.setattr(chaos_judge, "LEFT", 0.0)
    mark = f"chaos-test-{os.getpid()}"
    sleeper = subprocess.Popen(["sleep", "60"], env={**os.environ, "CHATLM_CHAOS": mark})
    try:
        stop([sleeper.pid])
        found = chaos_judge.survivors(mark)
    finally:
        send([sleeper.pid], signal.SIGKILL)
        sleeper.wait()

    assert found == ["1 processes are left"]
    assert chaos_judge.survivors(mark) == []


def test_the_old_run_counts_where_the_next_start_would_put_it_back(tmp_path: Path) -> None:
    """After a kill a file of it may be aside; after any other end it must be in its place."""
    old, now = finished(tmp_path / "old"), tmp_path / "now"
    (now / ".aside").mkdir(parents=True)
    for file in old.iterdir():
        (now / ".aside" / file.name).write_bytes(file.read_bytes())

    kept = chaos_kills.gone(old, now, hidden=True)
    lost = chaos_kills.gone(old, now, hidden=False)
    (now / ".aside" / "config.json").write_text("changed")

    assert kept == []
    assert lost == ["of the old run is lost: config.json, evaluations.jsonl, metrics.jsonl"]
    assert chaos_kills.gone(old, now, hidden=True) == ["of the old run is lost: config.json"]


def test_of_what_a_command_says_its_own_line_is_shown(tmp_path: Path) -> None:
    """Without the folder; else a notice that tells; else the last line."""
    said = f"note    resuming after step 4 of 12\nstep 5\nchatlm: {tmp_path}/run is gone\n"

    assert chaos_judge.line_of(said, tmp_path) == "chatlm: run is gone"
    assert chaos_judge.line_of(said.split("chatlm")[0]) == "resuming after step 4 of 12"
    assert chaos_judge.line_of("\x1b[?25l\x1b[3mover\x1b[0m\r\n") == "over"
    assert chaos_judge.line_of("a\nin logs/chat_trainer_20260101-000000-2.log\n") == "in LOG"


def test_no_case_is_begun_for_which_no_time_is_left(tmp_path: Path) -> None:
    """It is named in the table all the same."""
    case = Case(name="kills", run=chain, strikes=(Strike(done="SIGKILL", phase="saving"),))

    (found,) = one(case, Ground(tmp_path), deadline=0.0, slowness=1.0)

    assert (found.verdict, found.skipped) == ("not tried", "no time was left")
    assert "no time was left" in line(found)


def test_a_case_that_fails_by_itself_breaks_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its rows are broken, and say that the bench failed."""

    def fails(case: Case, place: Place) -> list[Row]:
        raise ValueError("no such phase")

    (tmp_path / "whole" / "cache").mkdir(parents=True)
    case = Case(name="kills", run=fails, strikes=(Strike(done="SIGKILL", phase="saving"),))

    (found,) = one(case, Ground(tmp_path), deadline=float("inf"), slowness=1.0)

    assert found.broken == ("the bench failed: ValueError: no such phase",)
    assert "ValueError: no such phase" in capsys.readouterr().err


def test_the_table_shows_what_is_broken_before_what_was_said() -> None:
    """Rows that differ by their phases alone are one; the line below counts each."""
    rows = [
        row(), row(broken=("exit 2",)), row(phase="stepping"),
        row(skipped="the superuser may write anywhere"),
    ]  # fmt: skip

    document = as_document(rows, seconds=61.0)

    assert table(document).splitlines()[2:] == [
        "| SIGKILL of x | saving, stepping | 1 | 2 steps | held | so |",
        "| SIGKILL of x | saving | 1 | 2 steps | broken | exit 2 |",
        "| SIGKILL of x | saving | 1 | 2 steps | not tried | the superuser may write anywhere |",
    ]
    assert words(document) == (
        "4 disturbances in 61 s: 2 held, 1 broken, 1 not tried; 2 steps lost at most, by runs that save "
        "every 2"
    )


def test_the_table_is_written_between_its_marks_as_often_as_wanted() -> None:
    """The page around it stays."""
    page, document = PAGE.read_text(), as_document([row()], seconds=1.0)

    once = with_table(page, as_document([row(said="earlier")], seconds=1.0))
    twice = with_table(once, document)

    assert table(document) in twice
    assert "earlier" not in twice
    assert twice.split(chaos.BEGIN)[0] == page.split(chaos.BEGIN)[0]
    assert twice.split(chaos.END)[1] == page.split(chaos.END)[1]


@pytest.mark.skipif(not RESULT.exists(), reason="no result is committed")
def test_the_committed_table_is_the_results_and_no_promise_is_broken() -> None:
    """`python -m bench.chaos --docs` writes it into the page."""
    document = read(RESULT)

    assert [line for line in document["rows"] if line["verdict"] == "broken"] == []
    assert RESULT.with_suffix(".md").read_text() == f"{table(document)}\n"
    assert with_table(PAGE.read_text(), document) == PAGE.read_text()


def test_an_unknown_case_is_refused_with_those_that_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is run."""
    monkeypatch.setattr(sys, "argv", ["chaos", "--only", "earthquakes"])

    with pytest.raises(SystemExit):
        chaos.main()

    assert "no case earthquakes; there are kills, " in capsys.readouterr().err


def test_each_damage_changes_a_file_and_is_repeated_alike(tmp_path: Path) -> None:
    """Bits, its length, its being there."""
    file = tmp_path / "file"
    found = []
    for _ in range(2):
        contents = []
        for _, damage in chaos_damage.damages(random.Random(1)):
            file.write_bytes(b"content of a file")
            damage(file)
            contents.append(file.read_bytes() if file.exists() else None)
        found.append(contents)

    assert found[0] == found[1]
    assert b"content of a file" not in found[0]
    assert found[0][-2:] == [b"", None]


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    """A short name: a socket's path has 108 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        found = Ground(Path(name))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                chaos_place, "MANY", 400
            )  # no case here is struck while rows are tokenised
            found.make()
        yield found


STRUCK = (
    Strike(
        done="SIGKILL of the worker", phase="saving", act=chaos_kills.kill_rank(0), codes=(1,),
        most_lost=2,
    ),
    Strike(
        done="the disk is full for the model", phase="exporting", act=full(100 * KIB), codes=(1,),
        says=RESUMES,
    ),
)  # fmt: skip


def test_a_run_that_is_killed_and_out_of_space_ends_as_the_undisturbed(ground: Ground) -> None:
    """The short form of `make chaos`: three starts of one run. End-to-end tests have interrupted ones."""
    rows = chain(Case(name="short", run=chain, strikes=STRUCK), Place(ground))

    assert [(row.done, row.exit, row.broken or row.skipped) for row in rows] == [
        ("SIGKILL of the worker", "1", None),
        ("the disk is full for the model", "1", None),
    ]
    assert [row.steps_lost for row in rows] == [2, 0]


def test_a_run_that_was_tampered_with_does_not_pass(ground: Ground) -> None:
    """The judge of real runs can fail: a hidden file, a canary and a line of metrics."""
    place = Place(ground)
    place.copy_whole()
    (place.output / ".model").mkdir()
    (place.outside / "canary").write_text("touched")
    lines = (place.output / "metrics.jsonl").read_text().splitlines(keepends=True)
    altered = json.loads(lines[0]) | {"loss": 1.0}
    (place.output / "metrics.jsonl").write_text("".join([json.dumps(altered) + "\n", *lines[1:]]))

    found = ended(place)

    assert [fault.partition(" by ")[0] for fault in found] == [
        "then: outside changed: canary",
        "then: losses differ",
        "then: left: .model",
    ]
