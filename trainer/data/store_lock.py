"""One process writes a token store, and the others wait for it."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from autotune.errors import OutputError
from autotune.file_lock import Lock, try_lock
from trainer.data.cache_folder import ELSEWHERE
from trainer.data.store_check import read_stats
from trainer.data.store_stats import Damaged
from trainer.data.tokenization import TELL_EVERY, Interrupted
from trainer.events import Tokenising
from trainer.reading.readers import count_rows


@contextmanager
def locked(
    folder: Path,
    partial: Path,
    paths: Sequence[str],
    progress: Callable[[Tokenising], None] | None,
    should_stop: Callable[[], bool],
) -> Iterator[None]:
    """Holds the lock of the store; the kernel releases it when its holder dies.

    Meanwhile reports the progress of the process that holds it, as `partial` records it.

    Raises:
        Interrupted: `should_stop` said so while another process held it.
        OutputError: what has the lock's name is no lock.
        OSError: the folder cannot be written.
    """
    file = folder.with_name(f".lock-{folder.name}")
    while (lock := _try(file)) is None:
        if should_stop():
            raise Interrupted("interrupted while another process tokenises")
        if progress is not None:
            with suppress(Damaged):  # it has just begun
                progress(read_stats(partial).progress(count_rows(paths)))
        time.sleep(TELL_EVERY)
    try:
        yield
    finally:
        lock.release()


def _try(file: Path) -> Lock | None:
    try:
        return try_lock(file)
    except OSError as error:
        if not file.is_symlink() and not file.exists():  # no space, or no folder
            raise
        raise OutputError(
            f"cannot lock {file}: {error.strerror}", f"remove it, or {ELSEWHERE}"
        ) from error
