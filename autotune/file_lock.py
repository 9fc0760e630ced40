"""Lock files: held by `flock`, released by the kernel when the holder dies, safe in folders that others can write.

A lock file is a plain file with one name, opened without following links. Its content names the holder, to show
and never to decide. Only its owner writes or removes it, so that no other file is ever changed through it.
"""

import fcntl
import os
import pwd
import re
import shlex
import stat
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from autotune.files import SAFELY

PRIVATE, SHARED = 0o600, 0o644
"""Modes of a lock file: for one user, and for all users of the machine. `flock` needs only reading."""
MOST_TEXT = 500
"""Bytes of the content that are read and written."""


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock that this process holds. A child that inherits the descriptor holds it too."""

    file: Path
    descriptor: int

    def release(self) -> None:
        """Removes the file if it is this user's, and ends the lock."""
        if _is_own(self.descriptor) and _is_at(self.file, self.descriptor):
            with suppress(OSError):
                self.file.unlink()
        os.close(self.descriptor)


def try_lock(file: Path, *, mode: int = PRIVATE) -> Lock | None:
    """The lock, or None while another process holds it.

    Raises:
        OSError: the folder cannot be written, or what is there is no plain file with one name.
    """
    while True:
        descriptor = _open(file, mode)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, descriptor):
                _sign(descriptor)
                return Lock(file, descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder removed it meanwhile


def holder(file: Path) -> str:
    """Who holds the lock, as the file says: `process 12 (ada, since 12:30:05): chatlm train`."""
    text = ""
    with suppress(OSError):
        descriptor = os.open(file, os.O_RDONLY | SAFELY)
        try:
            text = os.pread(descriptor, MOST_TEXT, 0).decode(errors="replace")
        finally:
            os.close(descriptor)
    match = re.fullmatch(r"(\d{1,10}) (\d\d:\d\d:\d\d) (\S+) (.+)", text)
    if match is None or not text.isprintable() or not psutil.pid_exists(int(match[1])):
        # it did not sign: the name is of an earlier holder, which was killed
        return "another process"
    return f"process {match[1]} ({match[3]}, since {match[2]}): {match[4]}"


def _open(file: Path, mode: int) -> int:
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | SAFELY, mode)
            os.fchmod(descriptor, mode)  # whatever the umask: other users may have to read it
            return descriptor
        except FileExistsError:
            pass
        try:
            descriptor = os.open(file, os.O_RDWR | SAFELY)
        except FileNotFoundError:  # its holder removed it
            continue
        except PermissionError:  # another user's
            descriptor = os.open(file, os.O_RDONLY | SAFELY)
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
            return descriptor
        os.close(descriptor)
        kind = "a hard link" if stat.S_ISREG(status.st_mode) else "no plain file"
        raise OSError(0, f"it is {kind}")


def _is_own(descriptor: int) -> bool:
    return os.fstat(descriptor).st_uid == os.geteuid()


def _is_at(file: Path, descriptor: int) -> bool:
    """Whether the path still names that file."""
    try:
        return os.path.samestat(file.lstat(), os.fstat(descriptor))
    except (FileNotFoundError, NotADirectoryError):  # the file, or its folder, is another one now
        return False


def _sign(descriptor: int) -> None:
    if _is_own(descriptor):
        command = ascii(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))[1:-1]
        text = f"{os.getpid()} {time.strftime('%H:%M:%S')} {_user()} {command}"
        with suppress(OSError):  # the disk is full: the lock holds anyway
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text.encode()[:MOST_TEXT], 0)


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # as in many containers
        return f"uid-{os.geteuid()}"
