"""Lock files: who holds one, what it never touches, and what it leaves."""

import fcntl
import os
import pwd
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from autotune import file_lock
from autotune.file_lock import SHARED, Lock, holder, try_lock
from tests.support.processes import deadline


def taken(file: Path, *, mode: int = file_lock.PRIVATE) -> Lock:
    lock = try_lock(file, mode=mode)
    assert lock is not None
    return lock


def test_a_held_lock_is_refused_and_a_released_one_leaves_no_file(tmp_path: Path) -> None:
    """Also within one process: each opening is a holder of its own."""
    file = tmp_path / "lock"

    lock = taken(file)
    second = try_lock(file)
    lock.release()
    left = list(tmp_path.iterdir())
    again = try_lock(file)

    assert second is None
    assert left == []
    assert again is not None
    again.release()


def test_the_file_names_process_user_and_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control characters of the command line are written out."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/chatlm", "train", "--name", "a\x1b[2J b"])

    lock = taken(tmp_path / "lock")
    words = holder(tmp_path / "lock")
    lock.release()

    assert words.startswith(f"process {os.getpid()} (")
    assert words.endswith("): chatlm train --name 'a\\x1b[2J b'")


def test_a_user_without_a_name_is_named_by_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in containers that are started with some user id."""

    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)

    lock = taken(tmp_path / "lock")

    assert f"(uid-{os.geteuid()}, since " in holder(tmp_path / "lock")
    lock.release()


@pytest.mark.parametrize(("mode", "umask"), [(file_lock.PRIVATE, 0), (SHARED, 0o077)])
def test_the_mode_is_the_wanted_one_whatever_the_umask(
    tmp_path: Path, mode: int, umask: int
) -> None:
    """A private lock file cannot even be read by others: they could hold it for ever."""
    before = os.umask(umask)
    try:
        lock = taken(tmp_path / "lock", mode=mode)
    finally:
        os.umask(before)

    assert stat.S_IMODE(lock.file.stat().st_mode) == mode
    lock.release()


def test_a_file_of_another_owner_is_locked_but_neither_signed_nor_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "lock"
    file.write_text("theirs")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)

    lock = taken(file)
    second = try_lock(file)
    lock.release()

    assert second is None
    assert file.read_text() == "theirs"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("symlink", "Too many levels of symbolic links"),
        ("hard link", "it is a hard link"),
        ("pipe", "it is no plain file"),
        ("folder", "Is a directory"),
    ],
)
def test_what_is_no_plain_file_with_one_name_is_refused_and_stays_as_it_is(
    tmp_path: Path, kind: str, reason: str
) -> None:
    victim, file = tmp_path / "victim", tmp_path / "lock"
    victim.write_text("precious")
    victim.chmod(0o640)
    match kind:
        case "symlink":
            file.symlink_to(victim)
        case "hard link":
            file.hardlink_to(victim)
        case "pipe":
            os.mkfifo(file)
        case "folder":
            file.mkdir()

    with deadline(20), pytest.raises(OSError, match=reason):
        try_lock(file)

    assert victim.read_text() == "precious"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o640
    assert os.path.lexists(file)


def test_a_lock_whose_file_was_removed_meanwhile_is_not_taken_for_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the opening and the lock, the holder leaves and a third process comes."""
    file, real = tmp_path / "lock", fcntl.flock
    third: list[Lock] = []
    file.touch()

    def late(descriptor: int, how: int) -> None:
        if not third:
            third.append(Lock(file, -1))
            file.unlink()
            third[0] = taken(file)
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)

    assert try_lock(file) is None
    third[0].release()


def test_a_child_that_inherits_the_lock_holds_it_after_its_parent(tmp_path: Path) -> None:
    """A worker that lives a moment longer than its supervisor keeps the folder."""
    file = tmp_path / "lock"
    lock = taken(file)
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        pass_fds=[lock.descriptor], stdin=subprocess.PIPE,
    )  # fmt: skip
    os.close(lock.descriptor)  # as a killed parent: nothing is removed

    while_it_lives = try_lock(file)
    child.communicate()
    afterwards = try_lock(file)

    assert while_it_lives is None
    assert afterwards is not None
    afterwards.release()


def test_a_lock_whose_folder_became_a_file_is_released_and_the_file_stays(tmp_path: Path) -> None:
    """The folder was moved away while it was held."""
    folder = tmp_path / "run"
    folder.mkdir()
    lock = taken(folder / ".lock")
    folder.rename(tmp_path / "elsewhere")
    folder.write_text("another file")

    lock.release()

    assert folder.read_text() == "another file"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(lock.descriptor)
