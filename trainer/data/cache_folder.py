"""The folder that token stores lie in. No other user can read, change or remove a store.

A folder of this user's that nobody else can write holds the stores itself. In any other one they are in
`user-<uid>`, mode 0700. A folder that others can write must have the sticky bit, as /tmp has: without it they
could rename that sub-folder. A folder of this user's needs none: its mode is this user's choice. Its owner and
root are trusted not to remove what is in it. What belongs to another user is never read or removed.
"""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autotune.errors import OutputError

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
ELSEWHERE = "set CHATLM_CACHE to a folder of your own"


def cache_folder() -> Path:
    """`$CHATLM_CACHE`, or `chatlm` in the user's cache folder.

    Raises:
        OutputError: the user has no home folder.
    """
    if own := os.environ.get("CHATLM_CACHE"):
        return Path(own)
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "chatlm"
    try:
        return Path.home() / ".cache" / "chatlm"
    except RuntimeError as error:  # as in containers that are started with some user id
        raise OutputError("the token cache has no place: no home folder", ELSEWHERE) from error


def private_folder() -> Path:
    """The folder for this user's stores; makes it.

    Raises:
        OutputError: what is there is not safe to use, or is no folder.
        OSError: it cannot be made.
    """
    given = cache_folder()
    make_private(given)
    if not given.exists():
        raise OutputError(f"the token cache {given} is a link to a missing folder", ELSEWHERE)
    folder = given.resolve()
    status = folder.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise OutputError(f"the token cache {given} is not a folder", ELSEWHERE)
    is_own, is_open = is_ours(status), bool(status.st_mode & OTHERS_WRITE)
    if is_own and not is_open:
        return folder
    if is_open and not is_own and not status.st_mode & stat.S_ISVTX:
        raise OutputError(
            f"other users could rename your tokens in the token cache {given} (mode "
            f"{stat.S_IMODE(status.st_mode):04o}, of user {status.st_uid})",
            f"set its sticky bit (chmod +t {given}), or {ELSEWHERE}",
        )
    own = folder / f"user-{os.geteuid()}"
    make_private(own)
    check_ours(own)
    return own


@contextmanager
def refusals() -> Iterator[None]:
    """Turns an error of using the folder into an OutputError that names it."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot use the token cache {cache_folder()}: {error.strerror or error}", ELSEWHERE
        ) from error


def make_private(folder: Path) -> None:
    """Makes the folder, and those above it that are missing, for this user alone, whatever the umask."""
    if os.path.lexists(folder):
        return
    make_private(folder.parent)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:  # another process made it meanwhile
        return
    folder.chmod(0o700)


def check_ours(folder: Path) -> None:
    """Closes a folder of this user's to all others.

    Raises:
        OutputError: it is no folder, or another user's.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise OutputError(f"{folder} is not a folder", f"remove it, or {ELSEWHERE}")
    if not is_ours(status):
        raise OutputError(
            f"{folder} belongs to user {status.st_uid}, not to you (user {os.geteuid()})", ELSEWHERE
        )
    if stat.S_IMODE(status.st_mode) != 0o700:
        folder.chmod(0o700)
        if folder.stat().st_mode & OTHERS_WRITE:
            raise OutputError(f"{folder} cannot be made private on its file system", ELSEWHERE)


def is_ours(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid()


def remove(path: Path) -> None:
    """Removes what is there: a link and not its target, a folder with what is in it.

    Raises:
        OutputError: it is another user's folder.
        OSError: it cannot be removed.
    """
    if not path.is_symlink() and path.is_dir():
        check_ours(path)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
