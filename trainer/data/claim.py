"""One writer among many processes: the others wait until it is done, or gone.

The lock is the kernel's (`flock`), which lets go of it when its holder dies, however it dies.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from autotune.devices.lock import try_lock

POLL = 0.1
"""Seconds between two tries."""


@contextmanager
def claimed(file: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds that lock file until the block ends; `waiting` is called between two tries, and may raise.

    The file goes when its holder is done. Who then gets a lock on what is no longer there, or has
    been made anew by another, begins again.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            while not try_lock(descriptor):
                waiting()
                time.sleep(POLL)
            if _is_there(file, descriptor):
                try:
                    yield
                finally:
                    file.unlink(missing_ok=True)
                return
        finally:
            os.close(descriptor)


def _is_there(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
