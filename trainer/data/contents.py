"""Data files by their content, and whether it is still the same."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from autotune.errors import DataError
from trainer.reading.kinds import check_file


class FileContents:
    """The files as they are now; reads them once.

    Raises:
        DataError: one is missing or cannot be read.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = tuple(paths)
        self._seen = {path: _signature(path) for path in paths}
        self.digests = {path: _digest(path) for path in paths}
        """SHA-256 of each."""

    def check_unchanged(self) -> None:
        """Raises DataError where one has changed since; reads again only those that were written."""
        for path, seen in self._seen.items():
            signature = _signature(path)
            if signature == seen:
                continue
            if _digest(path) != self.digests[path]:
                raise DataError(
                    f"{path} changed while it was read",
                    "run the command again once nothing writes to it",
                )
            self._seen[path] = signature


def _signature(path: str) -> tuple[int, int, int]:
    """Another one for another content, unless someone sets the time back."""
    check_file(path)
    status = Path(path).stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _digest(path: str) -> bytes:
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
