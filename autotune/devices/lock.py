"""One tuning at a time on a device: a second waits, because each would count the other as a tenant.

A lock file per device in the folder for temporary files, held by `flock`; the kernel releases it when
its process dies. Not filelock, because the file names its holder. A training run takes no lock, and
containers with their own temporary folders do not see each other's.
"""

import fcntl
import os
import pwd
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

POLL = 0.5
"""Seconds between two tries; between them, Ctrl-C works."""
OPENINGS = (os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDONLY)
"""Ways to open a lock file, best first. In a sticky folder, another user's file may not be opened for
creation (fs.protected_regular), and perhaps not for writing. A lock needs only reading."""
SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextmanager
def locked(
    devices: Sequence[str], *, notify: Callable[[str], None], folder: Path | None = None
) -> Iterator[None]:
    """Holds the devices until the block ends; waits for each that another process holds.

    `notify` gets a line for each device that another process holds, and for each that cannot be
    locked and is used without a lock.
    """
    folder = Path(tempfile.gettempdir()) if folder is None else folder
    with ExitStack() as stack:
        for device in sorted(set(devices)):  # the same order everywhere: no two wait for each other
            file = folder / f"chatlm-{re.sub(r'[^A-Za-z0-9.-]+', '_', device)}.lock"
            try:
                descriptor = _open(file)
                stack.callback(os.close, descriptor)
                is_ours = _try_lock(descriptor)
            except OSError as error:
                notify(
                    f"{device} cannot be locked ({file}: {error.strerror}); another tuning of it "
                    f"at the same time would spoil both"
                )
                continue
            if not is_ours:
                notify(f"{device} is being tuned by {_holder(descriptor)}; waiting for it")
            while not is_ours:
                time.sleep(POLL)
                is_ours = _try_lock(descriptor)
            _sign(descriptor, f"{os.getpid()} {time.strftime('%H:%M:%S')} {_user()}")
            stack.callback(_sign, descriptor, "")
        yield


def _open(file: Path) -> int:
    for flags in OPENINGS:
        try:
            descriptor = os.open(file, flags | SAFELY, 0o666)
        except OSError as error:
            refusal = error
            continue
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(0, "not a file")
        with suppress(OSError):  # another user's file: its owner has done it
            os.fchmod(descriptor, 0o666)  # whatever the umask: other users lock it too
        return descriptor
    raise refusal


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(descriptor: int, text: str) -> None:
    with suppress(OSError):  # opened for reading only, or the disk is full: the lock holds anyway
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _holder(descriptor: int) -> str:
    """Who holds the lock, as the file says. Anyone may write the file: to show, never to decide."""
    text = os.pread(descriptor, 200, 0).decode(errors="replace")
    match = re.fullmatch(r"(\d{1,10}) (\d\d:\d\d:\d\d) (.+)", text)
    if match is None or not match[3].isprintable() or not psutil.pid_exists(int(match[1])):
        # it did not sign: the name is of an earlier holder, which was killed
        return "another process"
    return f"process {match[1]} ({match[3]}, since {match[2]})"


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # as in many containers
        return f"user {os.getuid()}"
