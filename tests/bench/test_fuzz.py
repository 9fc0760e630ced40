"""The fuzz bench finds every kind of fault; a short form of it runs with the tests."""

import json
import os
from pathlib import Path
from random import Random

import pytest

from bench.fuzz import data_files, mutations, profiles, run_folders
from bench.fuzz.__main__ import line, main
from bench.fuzz.batches import Report, run_kind
from bench.fuzz.case import Place, Prepare
from bench.fuzz.child import KINDS, prepare
from tests.support.fuzz_seeds import SEEDS
from trainer.reading.readers import read_rows

PLANTED = "tests.support.planted"


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused(kind: str) -> None:
    """A short form of `make fuzz`, and every case of a long one that failed once."""
    cases = sorted({*range(40), *SEEDS[kind]})

    report = run_kind(kind, 0, cases, processes=1)

    found = [f"{failure.fault.cause}: {failure.command}" for failure in report.failures]
    assert found == []


def run(name: str, cases: int = 1, *, patience: float = 60.0) -> Report:
    """The report of a planted kind."""
    return run_kind(f"{PLANTED}:{name}", 0, range(cases), patience=patience, processes=1)


def causes(report: Report) -> list[str]:
    return [failure.fault.cause for failure in report.failures]


def test_readers_that_keep_every_promise_have_no_failure() -> None:
    """Each case is counted."""
    report = run("reads", 5)

    assert report.failures == ()
    assert report.answers == {"read": 5}


def test_emoji_are_no_control_characters() -> None:
    """The joiner between three persons stays, and so does the line break."""
    assert run("prints_emoji").failures == ()


@pytest.mark.parametrize(
    ("name", "cause", "says"),
    [
        ("raises", "ValueError at planted.py:", "invalid literal \\x1b[2J"),
        ("recurses", "RecursionError at planted.py:", "maximum recursion depth"),
        ("takes_memory", "MemoryError at planted.py:", ""),
        ("says_escape", "control character in message of planted.py:", "U+202E in a\\u202eb"),
        ("says_too_much", "long message of planted.py:", "3,000 characters: xxx"),
        ("prints_escape", "control character in printed text", "U+0007 U+001B in rows.csv: CSV\n\\x1b]0;title"),
        ("aborts", "SIGABRT at ", "Fatal Python error"),
        ("exits", "exit code 0 at ", ""),
        ("removes", "a file that is not the reader's is gone", "outside/canary.txt"),
        ("rewrites", "a file that is not the reader's changed", "outside/canary.txt"),
        ("follows_a_link", "a file that is not the reader's is gone", "outside/folder/checkpoint-4"),
        ("adds", "a file that is not the reader's is new", "work/new"),
        ("leaves_a_temporary_file", "temporary file is left", "tmp/tmp"),
        ("leaves_a_half_written_file", "temporary file is left", ".run.json.1.tmp"),
        ("leaves_a_process", "process is left", "one"),
        ("other_tokens", "Broken at token_stores.py:", "other sources than at first"),
    ],
)  # fmt: skip
def test_a_promise_that_is_broken_is_a_failure(name: str, cause: str, says: str) -> None:
    """With what it was, and the command that repeats it."""
    report = run(name)

    (failure,) = report.failures
    assert failure.fault.cause.startswith(cause)
    assert failure.fault.says.startswith(says) or says in failure.fault.detail
    assert failure.command == f"python -m bench.fuzz --only {PLANTED}:{name} --seed 0 --case 0"


@pytest.mark.parametrize("name", ["hangs", "waits"])
def test_a_case_that_hangs_is_ended(name: str) -> None:
    """Also one that waits inside the system."""
    (failure,) = run(name, patience=1.0).failures

    assert failure.fault.cause.startswith("hang at ")
    assert failure.fault.says == "more than 1 s"


def test_cases_go_on_after_one_that_dies() -> None:
    """In another process; each has its own failure."""
    report = run("aborts", 3)

    assert [failure.case for failure in report.failures] == [0, 1, 2]
    assert report.answers == {"died": 3}


def test_errors_are_counted_by_class_and_every_case_is_heard() -> None:
    """Whatever the number of processes."""
    one = run("mixed", 20)
    two = run_kind(f"{PLANTED}:mixed", 0, range(20), processes=2)

    assert set(one.answers) == {"read", "DataError", "ValueError"}
    assert sum(one.answers.values()) == 20
    assert one.answers["ValueError"] == len(one.failures)
    assert (two.answers, two.failures) == (one.answers, one.failures)


def test_originals_that_cannot_be_made_are_an_error_and_no_failure() -> None:
    """It says why."""
    with pytest.raises(SystemExit, match=r"could not be prepared:(?s:.*)no space left"):
        run("crashes_at_making")


def test_the_command_shows_a_case_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the traceback; the result file has the same."""
    result = tmp_path / "fuzz.json"
    words = ["--only", f"{PLANTED}:raises", "--case", "7", "--result", str(result)]

    code = main(words)

    printed = capsys.readouterr().out
    (kind,) = json.loads(result.read_text())["kinds"].values()
    assert code == 1
    assert "raise error\nValueError: invalid literal" in printed
    assert f"python -m bench.fuzz --only {PLANTED}:raises --seed 0 --case 7" in printed
    assert (kind["cases"], kind["answers"]) == (1, {"ValueError": 1})
    assert [failure["case"] for failure in kind["failures"]] == [7]


def test_the_command_exits_with_0_where_nothing_failed(capsys: pytest.CaptureFixture[str]) -> None:
    """And prints a line for the kind."""
    code = main(["--only", f"{PLANTED}:reads", "--case", "0"])

    assert code == 0
    assert "1 cases in" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["--only", "profile"], ["--case", "3"], ["--only", "data,stores", "--case", "3"]]
)
def test_a_kind_that_is_unknown_or_not_one_is_refused(words: list[str]) -> None:
    """As argparse does."""
    with pytest.raises(SystemExit) as caught:
        main(words)

    assert caught.value.code == 2


def test_a_line_has_the_speed_and_the_failed_cases() -> None:
    """A case with two faults has failed once."""
    report = run("mixed", 20)

    words = line(Report("mixed", 20, 2.0, report.answers, report.failures * 2))

    assert words.startswith("mixed         20 cases in    2.0 s (10/s): ")
    assert words.endswith(f"; {len(report.failures)} failed")


@pytest.mark.parametrize("kind", ["profiles", "data", "folders"])
def test_a_case_follows_from_its_number_alone(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are the same, made among others or alone."""
    monkeypatch.chdir(tmp_path)
    first, again = (made(prepare(kind), tmp_path / name, range(12)) for name in ("a", "b"))
    alone = made(prepare(kind), tmp_path / "c", range(11, 12))

    assert first == again
    assert alone == first[11:]
    assert len({str(files) for files in first}) == 12


def made(prepare: Prepare, folder: Path, numbers: range) -> list[dict[str, bytes]]:
    """The files of those cases."""
    (folder / "originals").mkdir(parents=True)
    make, place = prepare(folder / "originals"), Place(folder / "case")
    found = []
    for number in numbers:
        place.begin()
        make(place, Random(f"{number}"))
        found.append(contents(place.work))
    return found


def contents(work: Path) -> dict[str, bytes]:
    """The small files by name, wherever they are."""
    files = (Path(path, name) for path, _, names in os.walk(work) for name in names)
    return {
        str(file.relative_to(work)): file.read_bytes()
        for file in files
        if file.is_file() and file.stat().st_size < mutations.SPARSE and os.access(file, os.R_OK)
    }


def test_originals_are_what_the_readers_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every case would be refused for the same reason."""
    monkeypatch.chdir(tmp_path)
    made: dict[str, bytes] = dict(data_files.originals())

    for name, data in made.items():
        (tmp_path / name).write_bytes(data)
        assert list(read_rows(name)), name


def test_an_undamaged_profile_and_run_file_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every case would be refused for the same reason."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tuned.toml").write_bytes(mutations.as_toml(profiles.PROFILE))
    (tmp_path / "run.toml").write_bytes(mutations.as_toml(profiles.RUN))

    read_run, load, *_ = profiles.readers(Random(1), "tuned.toml", "fast", tmp_path / "run.toml")

    read_run()
    load()


def test_an_undamaged_run_folder_passes_every_reader(tmp_path: Path) -> None:
    """What is the user's stays there after `--fresh`."""
    run_folders.write_run(tmp_path / "run", is_finished=False)

    for read in run_folders.readers(tmp_path / "run", Random(1)):
        read()

    names = {
        path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*")
    }
    assert set(run_folders.FOREIGN) <= names
    assert not list((tmp_path / "run").glob("checkpoint-[0-9]"))
