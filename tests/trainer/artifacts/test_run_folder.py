"""The folder of a run: whose it is, and that it is found out before anything is started."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import OutputError
from tests.support.run_folders import OTHER, RUN, contents, export, names, replaced, save, trained
from trainer.artifacts.run_folder import RunFolder
from trainer.artifacts.run_record import DataRecord


def refusal_of(folder: RunFolder, run_key: dict[str, Any], *, fresh: bool = False) -> str:
    before = contents(folder.path)
    with pytest.raises(OutputError) as caught:
        folder.check(run_key, fresh=fresh)
    with pytest.raises(OutputError):
        folder.claim(run_key, fresh=fresh)
    assert contents(folder.path) == before
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "models" / "sft_fast")


def test_a_check_writes_nothing(folder: RunFolder, tmp_path: Path) -> None:
    """Not even the folders above it."""
    folder.check(RUN, fresh=False)

    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_run_goes_on(folder: RunFolder) -> None:
    """Its checkpoints and its metrics stay: what is read back is the same run."""
    trained(folder)
    before = contents(folder.path)

    folder.check(RUN, fresh=False)
    folder.claim(RUN, fresh=False)

    assert contents(folder.path) == before


def test_a_finished_run_is_not_trained_again_unasked(folder: RunFolder) -> None:
    """The model in it is the user's."""
    trained(folder, finished=True)

    assert refusal_of(folder, RUN) == (
        f"{folder.path} holds this run, which is finished; use --fresh to train it again, or another "
        f"--output-dir"
    )


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (DataRecord(rows=5, tokens=60, digest="b"), "4 rows of 50 tokens, now 5 rows of 60 tokens"),
        (
            DataRecord(rows=4, tokens=50, digest="b"),
            "as before 4 rows of 50 tokens, of other content",
        ),
    ],
)
def test_a_run_is_not_resumed_on_other_data(folder: RunFolder, now: DataRecord, says: str) -> None:
    """Its order of samples and its schedule would be others'; the same rows in another file are the same."""
    then = DataRecord(rows=4, tokens=50, digest="a")
    folder.claim(RUN, fresh=False, data=then)
    (folder.path / "checkpoint-1").mkdir()
    before = contents(folder.path)

    folder.claim(RUN, fresh=False, data=then)
    with pytest.raises(OutputError) as caught:
        folder.claim(RUN, fresh=False, data=now)

    assert contents(folder.path) == before
    assert str(caught.value) == (
        f"the data of the run in {folder.path} has changed: {says}; put the data back to resume, use "
        f"--fresh to begin anew, or another --output-dir"
    )
    folder.claim(RUN, fresh=True, data=now)
    assert folder.checkpoints() == []


@pytest.mark.parametrize("finished", [False, True])
def test_another_run_is_named_by_what_differs(folder: RunFolder, finished: bool) -> None:
    """The first setting, with both values; also one of the workload's."""
    trained(folder, finished=finished)
    other_model = {**RUN, "workload": {**RUN["workload"], "model": "chatlm-0.2b"}}
    advice = "use --fresh to replace it, or another --output-dir"

    assert refusal_of(folder, OTHER) == (
        f"{folder.path} holds another run (effective batch 16, now 32); {advice}"
    )
    assert refusal_of(folder, other_model) == (
        f"{folder.path} holds another run (model chatlm-tiny, now chatlm-0.2b); {advice}"
    )


@pytest.mark.parametrize(("key", "old", "new"), [("max_steps", 40, 50), ("epochs", 1.0, 2.0)])
def test_a_longer_run_is_another_run_and_the_refusal_says_how(
    folder: RunFolder, key: str, old: float, new: float
) -> None:
    """Its learning rates would have been others from the first step on."""
    folder.claim({**RUN, key: old}, fresh=False)
    folder.metrics.path.write_text("")

    assert refusal_of(folder, {**RUN, key: new}) == (
        f"{folder.path} holds another run ({key.replace('_', ' ')} {old}, now {new}); its learning "
        f"rates depend on its length, so the length cannot change: finish it as it was, then "
        f"train on with --model {folder.path} and another --output-dir, or use --fresh to replace "
        f"it, or another --output-dir"
    )


def test_what_a_killed_process_had_begun_is_removed(folder: RunFolder) -> None:
    """Half a checkpoint, half a model: hidden, and nobody's."""
    trained(folder)
    for name in (".checkpoint-2", ".model"):
        (folder.path / name).mkdir()
        (folder.path / name / "file").touch()
    for name in (".run.json.12.tmp", ".metrics.jsonl.7.tmp", ".notes.7.tmp"):
        (folder.path / name).touch()

    folder.claim(RUN, fresh=False)

    assert names(folder.path) == [".notes.7.tmp", "checkpoint-1", "metrics.jsonl", "run.json"]


def test_a_damaged_checkpoint_is_set_aside(folder: RunFolder) -> None:
    """It is no checkpoint any more, beside an earlier one; `--fresh` removes both."""
    trained(folder)
    first = folder.set_aside(folder.path / "checkpoint-1")
    save(folder, 1)

    second = folder.set_aside(folder.path / "checkpoint-1")

    assert folder.checkpoints() == []
    assert [first.name, second.name] == ["damaged-checkpoint-1", "damaged-checkpoint-1-2"]
    assert (second / "state.json").exists()
    assert replaced(folder) is None
    assert names(folder.path) == ["checkpoint-2", "run.json"]


def test_a_fresh_run_removes_every_file_of_the_model(folder: RunFolder) -> None:
    """A large one has several, whose names only the run knows."""
    trained(folder)
    model = [
        "model-00001-of-00002.safetensors",
        "spiece.model",
        "additional_chat_templates/a.jinja",
    ]
    export(folder, {name: name for name in model})

    said = replaced(folder)

    assert said is None
    assert names(folder.path) == ["checkpoint-2", "run.json"]


def test_a_run_that_never_took_a_step_is_no_hindrance(folder: RunFolder) -> None:
    """It failed before: the right run must not need `--fresh`."""
    folder.claim(RUN, fresh=False)

    folder.claim(OTHER, fresh=False)

    assert json.loads((folder.path / "run.json").read_text())["identity"]["effective_batch"] == 32


def test_a_fresh_run_removes_what_a_run_left_and_nothing_else(folder: RunFolder) -> None:
    """Notes that the user put there are not ours."""
    trained(folder, finished=True)
    (folder.path / "notes.txt").write_text("mine")

    assert replaced(folder) is None
    assert names(folder.path) == ["checkpoint-2", "notes.txt", "run.json"]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_other_things_is_refused(folder: RunFolder, fresh: bool) -> None:
    """`--fresh` would remove a model that no run of ours made."""
    folder.path.mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "b", "a"):
        (folder.path / name).write_text(name)

    assert refusal_of(folder, RUN, fresh=fresh) == (
        f"{folder.path} holds other things (a, b, config.json); choose an empty --output-dir"
    )


def test_an_empty_folder_is_taken(folder: RunFolder) -> None:
    """So is one with hidden files only."""
    folder.path.mkdir(parents=True)
    (folder.path / ".gitkeep").touch()

    folder.claim(RUN, fresh=False)

    assert (folder.path / "run.json").exists()


def test_a_damaged_record_is_refused_until_fresh(folder: RunFolder) -> None:
    """Whose run it was cannot be told."""
    trained(folder)
    (folder.path / "run.json").write_text('{"identity": ')

    message = refusal_of(folder, RUN)
    said = replaced(folder)

    assert message.startswith(f"{folder.path / 'run.json'} is damaged (Expecting value")
    assert message.endswith("; use --fresh to start anew, or another --output-dir")
    assert [path.name for path in folder.checkpoints()] == ["checkpoint-2"]
    assert (
        said
        == f"{folder.path / 'kept'} has what was among the old run's files and is not the run's"
    )
    assert names(folder.path / "kept") == ["metrics.jsonl", "run.json"]


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("text", ["[1]", '{"name": "a program of the user\'s"}'])
def test_a_record_of_another_program_is_refused(folder: RunFolder, text: str, fresh: bool) -> None:
    """It is JSON, but not a run's: not even `--fresh` replaces it."""
    folder.path.mkdir(parents=True)
    (folder.path / "run.json").write_text(text)

    assert refusal_of(folder, RUN, fresh=fresh) == (
        f"{folder.path / 'run.json'} is not a run of chatlm's; choose another --output-dir"
    )


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file/run", "Not a directory"),
        ("x" * 300, "File name too long"),
        ("link", "No such file or directory"),
        ("/proc/run", ".+"),
        ("/proc/self/run", ".+"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused(
    tmp_path: Path, place: str, reason: str, fresh: bool
) -> None:
    """Tried with a real file: permission bits do not bind the superuser. With the system's reason."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    folder = RunFolder(tmp_path / place)

    assert re.fullmatch(
        f"cannot write to {re.escape(str(folder.path))}: {reason}; choose another --output-dir",
        refusal_of(folder, RUN, fresh=fresh),
    )


def test_a_disk_with_too_little_space_is_refused(folder: RunFolder) -> None:
    """With what is free and what is needed; the folder need not be there yet."""
    free = shutil.disk_usage("/").free

    folder.check_space(1)
    with pytest.raises(OutputError) as caught:
        folder.check_space(2**60)

    assert free < 2**60
    assert str(caught.value).startswith(f"{folder.path} has ")
    assert str(caught.value).endswith(
        "free, the run's checkpoints and model need about 1073741824 GiB; free some, or choose "
        "another --output-dir"
    )
    assert not folder.path.exists()


def test_checkpoints_are_listed_oldest_first(folder: RunFolder) -> None:
    """By number; what is half-written is not one."""
    for name in ("checkpoint-10", "checkpoint-9", ".checkpoint-11", "checkpoint-x", "checkpoint-²"):
        (folder.path / name).mkdir(parents=True)
    (folder.path / "checkpoint-12").touch()

    assert [path.name for path in folder.checkpoints()] == ["checkpoint-9", "checkpoint-10"]
