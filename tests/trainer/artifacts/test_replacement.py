"""`--fresh`: what of the old run is removed, when, and what comes back after a kill at any moment."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autotune.errors import OutputError
from tests.support.run_folders import OTHER, contents, export, names, replaced, save, trained
from trainer.artifacts.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "models" / "sft_fast")


class Killed(BaseException):
    """A SIGKILL, as far as the disk can tell."""


@contextmanager
def killed_at(number: int) -> Iterator[list[str]]:
    """Raises Killed in the place of the change of that number to the disk; the list gets the changes before."""
    done: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("rename", "unlink", "rmdir", "mkdir", "replace"):
            real = getattr(os, name)

            def change(*args: object, _name: str = name, _real=real, **options: object) -> object:  # type: ignore[no-untyped-def]
                if len(done) == number:
                    raise Killed
                done.append(_name)
                return _real(*args, **options)

            patch.setattr(os, name, change)
        yield done


@pytest.mark.parametrize("finished", [False, True])
def test_the_old_run_comes_back_where_the_new_one_saved_nothing(
    folder: RunFolder, finished: bool
) -> None:
    """As when the rehearsal of its largest step runs out of memory."""
    trained(folder, finished=finished)
    (folder.path / "run.toml").write_text("old")
    before = contents(folder.path)

    folder.claim(OTHER, fresh=True)
    (folder.path / "run.toml").write_text("new")
    folder.metrics.add({"step": 1})
    said = folder.settle()

    assert contents(folder.path) == before
    assert said == f"the run in {folder.path} is back: the new one had saved nothing"
    assert folder.settle() is None


def test_the_old_run_is_there_until_the_new_one_has_saved_something(folder: RunFolder) -> None:
    """Then all of it is removed."""
    trained(folder, finished=True)

    folder.claim(OTHER, fresh=True)
    while_it_starts = contents(folder.path / ".aside")
    save(folder, 2)
    said = folder.settle()

    assert "weights" in [content.decode() for content in while_it_starts.values()]  # type: ignore[union-attr]
    assert said is None
    assert names(folder.path) == ["checkpoint-2", "run.json"]


def test_a_run_without_checkpoints_replaces_the_old_one_when_it_is_finished(
    folder: RunFolder,
) -> None:
    """A short run saves nothing before its final model."""
    trained(folder, finished=True)

    folder.claim(OTHER, fresh=True)
    export(folder, {"config.json": "new"})
    folder.finish()
    folder.settle()

    assert names(folder.path) == ["config.json", "run.json"]
    assert (folder.path / "config.json").read_text() == "new"


@pytest.mark.parametrize("saved", [False, True])
def test_a_kill_at_any_moment_loses_neither_run(tmp_path: Path, saved: bool) -> None:
    """The old one comes back whole while the new one has saved nothing; after that it is gone, and the new one whole."""
    moments = 0
    while True:
        folder = trained(RunFolder(tmp_path / f"run-{moments}"), finished=True)
        (folder.path / "run.toml").write_text("old")
        (folder.path / "notes.txt").write_text("mine")
        before = contents(folder.path)
        try:
            with killed_at(moments):
                folder.claim(OTHER, fresh=True)
                (folder.path / "run.toml").write_text("new")
                if saved:
                    save(folder, 2)
                folder.settle()
            is_over = True
        except Killed:
            is_over = False

        for after in range(3):  # killed again while it is put right
            try:
                with killed_at(after):
                    folder.settle()
            except Killed:
                continue
        folder.settle()

        if (folder.path / "checkpoint-2").exists():
            assert names(folder.path) == ["checkpoint-2", "notes.txt", "run.json", "run.toml"]
            assert (folder.path / "run.toml").read_text() == "new"
        else:
            left = contents(folder.path)
            half = {path for path in left if "/.checkpoint-2/" in path or ".run.json." in path}
            assert {path: text for path, text in left.items() if path not in half} == before
        if is_over:
            break
        moments += 1
    assert moments > 10


@pytest.mark.parametrize(
    "model",
    [
        [".."], [""], ["."], ["/"], ["notes.txt"], ["../kept"], ["checkpoint-1/../../kept"], ["a/../.."],
        {"..": {"bytes": 0, "crc32": 0}}, {"notes.txt": {"bytes": 4, "crc32": 0}}, {"": None},
        {"../kept": {"bytes": 4, "crc32": 0x5F2B_1D5B}}, {"link/kept": {"bytes": 4, "crc32": 0x5F2B_1D5B}},
        None, 7, "..", [["../kept"]], [None], ["\ud800", "\0"],
    ],
)  # fmt: skip
def test_a_record_cannot_name_what_is_removed(folder: RunFolder, model: object) -> None:
    """It is damaged, or the folder is from someone else."""
    trained(folder, finished=True)
    outside = folder.path.parent / "kept"
    outside.write_text("kept")
    (folder.path / "notes.txt").write_text("mine")
    (folder.path / "link").symlink_to(folder.path.parent)
    record = folder.path / "run.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "model": model}))

    replaced(folder)

    assert outside.read_text() == "kept"
    assert (folder.path / "notes.txt").read_text() == "mine"
    assert (folder.path / "link").is_symlink()
    assert [path.name for path in folder.checkpoints()] == ["checkpoint-2"]


def test_files_of_others_among_the_old_runs_are_kept(folder: RunFolder) -> None:
    """In a checkpoint, in the model's folder, or in the place of a file that a run wrote."""
    trained(folder)
    export(folder, {"config.json": "{}", "README.md": "a card", "adapter/weights": "w"})
    folder.finish()
    (folder.path / "checkpoint-1" / "notes.txt").write_text("mine")
    (folder.path / "README.md").write_text("my own words")
    (folder.path / "adapter" / "notes.txt").write_text("mine too")

    said = replaced(folder)

    kept = folder.path / "kept"
    assert said == f"{kept} has what was among the old run's files and is not the run's"
    assert {path.removeprefix(f"{kept}/"): text for path, text in contents(kept).items()} == {
        "kept-checkpoint-1/notes.txt": b"mine",
        "adapter/notes.txt": b"mine too",
    }
    assert names(folder.path) == ["README.md", "checkpoint-2", "kept", "run.json"]
    assert (folder.path / "README.md").read_text() == "my own words"


def test_a_checkpoint_of_another_program_is_kept(folder: RunFolder) -> None:
    """transformers' Trainer gives its checkpoints the same names."""
    trained(folder)
    other = folder.path / "checkpoint-500"
    other.mkdir()
    (other / "trainer_state.json").write_text("{}")

    replaced(folder)

    assert names(folder.path / "kept") == ["kept-checkpoint-500"]
    assert names(folder.path / "kept" / "kept-checkpoint-500") == ["trainer_state.json"]


def test_links_are_unlinked_and_never_followed(folder: RunFolder) -> None:
    """Of checkpoints, files and folders; also of those that a killed process might have left."""
    trained(folder, finished=True)
    elsewhere = folder.path.parent / "elsewhere"
    (folder.path / "checkpoint-1").rename(elsewhere)
    (elsewhere / "notes.txt").write_text("mine")
    before = contents(elsewhere)
    linked = ("checkpoint-1", "checkpoint-7", "damaged-checkpoint-3", "tracking", "loss.png",
              ".checkpoint-9", ".model", ".removing-checkpoint-4", ".aside", ".returning", ".replaced")  # fmt: skip
    for name in linked:
        (folder.path / name).symlink_to(elsewhere)

    said = replaced(folder)

    assert contents(elsewhere) == before
    assert said is None
    assert names(folder.path) == ["checkpoint-2", "run.json"]


def test_a_model_takes_no_others_place(folder: RunFolder) -> None:
    """What somebody put under the name of one of its files is set aside."""
    trained(folder)
    (folder.path / "README.md").write_text("my notes")
    (folder.path / "vocab").mkdir()

    export(folder, {"config.json": "{}", "README.md": "a card", "vocab": "words"})
    export(folder, {"config.json": "{}", "README.md": "a card again", "vocab": "words"})

    assert (folder.path / "README.md").read_text() == "a card again"
    assert (folder.path / "kept-README.md").read_text() == "my notes"
    assert [name for name in names(folder.path) if "vocab" in name] == ["kept-vocab", "vocab"]


def test_a_disk_that_fills_while_the_old_run_moves_loses_none_of_it(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a copy of its run.toml never takes the place of the whole one."""
    trained(folder, finished=True)
    (folder.path / "run.toml").write_text("old")
    before = contents(folder.path)

    def full(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputError, match="No space left"):
            folder.claim(OTHER, fresh=True)
    folder.settle()

    assert contents(folder.path) == before
