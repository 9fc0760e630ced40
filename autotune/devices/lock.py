"""One tuning at a time on a device: a second waits, because each would count the other as a tenant.

A lock file per device in the folder for temporary files. A training run takes no lock, and containers with
their own temporary folders do not see each other's.
"""

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from autotune.file_lock import SHARED, holder, try_lock

POLL = 0.5
"""Seconds between two tries; between them, Ctrl-C works."""


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
                if (lock := try_lock(file, mode=SHARED)) is None:
                    notify(f"{device} is being tuned by {holder(file)}; waiting for it")
                while lock is None:
                    time.sleep(POLL)
                    lock = try_lock(file, mode=SHARED)
            except OSError as error:
                notify(
                    f"{device} cannot be locked ({file}: {error.strerror}); another tuning of it "
                    f"at the same time would spoil both"
                )
                continue
            stack.callback(lock.release)
        yield
