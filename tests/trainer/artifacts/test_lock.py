"""A run's folder is held while a run is in it."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.errors import OutputError
from tests.support.run_folders import trained
from trainer.artifacts import run_folder
from trainer.artifacts.run_folder import RunFolder


def enter(folder: RunFolder) -> None:
    with folder.locked():
        pass


def test_a_second_run_is_refused_with_the_first_ones_process_and_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["chatlm", "train", "--profile", "tuned"])
    folder = RunFolder(tmp_path / "run")

    with folder.locked(), pytest.raises(OutputError) as caught:
        enter(folder)

    assert str(caught.value).startswith(f"{folder.path} is in use by process {os.getpid()} (")
    assert str(caught.value).endswith(
        "): chatlm train --profile tuned; wait for its end, or choose another --output-dir"
    )


def test_a_folder_in_which_nothing_was_written_is_gone_afterwards(tmp_path: Path) -> None:
    """With those above it that were made for it."""
    with RunFolder(tmp_path / "models" / "run").locked():
        was_there = (tmp_path / "models" / "run").is_dir()

    assert was_there
    assert list(tmp_path.iterdir()) == []


def test_a_run_leaves_no_lock_behind(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")

    with folder.locked():
        trained(folder)

    assert not (folder.path / ".lock").exists()
    enter(folder)


def test_workers_hold_the_folder_after_their_supervisor(tmp_path: Path) -> None:
    """One that was killed: they may still write."""
    folder = RunFolder(tmp_path / "run")
    with folder.locked() as inherited:
        worker = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"],
            pass_fds=inherited, stdin=subprocess.PIPE,
        )  # fmt: skip
        (folder.path / "file").touch()
        (descriptor,) = (os.dup(each) for each in inherited)
        (folder.path / ".lock").rename(folder.path / "saved")  # a killed process removes nothing
    (folder.path / "saved").rename(folder.path / ".lock")
    os.close(descriptor)

    with pytest.raises(OutputError, match="is in use by "):
        enter(folder)
    worker.communicate()
    enter(folder)


@pytest.mark.parametrize("kind", ["link", "hard link", "folder"])
def test_a_lock_file_that_is_none_is_refused_and_not_touched(tmp_path: Path, kind: str) -> None:
    folder, victim = RunFolder(tmp_path / "run"), tmp_path / "victim"
    folder.path.mkdir()
    victim.write_text("precious")
    file = folder.path / ".lock"
    match kind:
        case "link":
            file.symlink_to(victim)
        case "hard link":
            file.hardlink_to(victim)
        case "folder":
            file.mkdir()

    with pytest.raises(OutputError) as caught:
        enter(folder)

    assert str(caught.value).startswith(f"cannot lock {file}: ")
    assert victim.read_text() == "precious"


def test_a_file_system_without_locks_is_used_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some parallel file systems are mounted so."""

    def no_locks(file: Path) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder, "try_lock", no_locks)

    with RunFolder(tmp_path / "run").locked() as inherited:
        assert inherited == ()
