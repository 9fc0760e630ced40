"""Tokens on disk: tokenised once, then memory-mapped, so host memory does not grow with the rows.

A store is a folder of files (see `tokenization`), named by a hash of data, tokenizer and settings.
While it is incomplete its name is `.partial-<name>`; one process writes it and the others wait.
"""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from autotune.errors import DataError, OutputError
from trainer.data.encoder import Encoder
from trainer.data.tokenization import TELL_EVERY, Interrupted, StoreStats, tokenise
from trainer.events import Tokenising
from trainer.reading.kinds import check_file
from trainer.reading.layouts import BY_NAME, Columns
from trainer.reading.readers import count_rows

VERSION = 5
"""Part of the name: a change of format or of encoding makes old stores unreachable."""

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenStore:
    """Sources and targets by row number. All arrays are memory-mapped."""

    folder: Path
    stats: StoreStats
    tokens: npt.NDArray[Any]
    """(tokens,) uint16 or uint32."""
    offsets: Numbers
    """(2 · rows + 1,)"""
    masks: npt.NDArray[np.bool_] | None
    """(tokens,) whether a source's token counts in the loss; None where none does."""
    source_counts: npt.NDArray[np.int32] | None
    """(rows,) the number of tokens of each source that count in the loss."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the folder alone: a loader worker maps the same pages, and arrays would be copied."""
        return read_store, (self.folder,)

    def __len__(self) -> int:
        return self.stats.rows

    def source(self, row: int) -> npt.NDArray[Any]:
        return self.tokens[self.offsets[2 * row] : self.offsets[2 * row + 1]]

    def target(self, row: int) -> npt.NDArray[Any]:
        return self.tokens[self.offsets[2 * row + 1] : self.offsets[2 * row + 2]]

    def loss_mask(self, row: int) -> npt.NDArray[np.bool_]:
        """(source,) whether the loss counts a token of the source. It counts the whole target."""
        first, last = self.offsets[2 * row], self.offsets[2 * row + 1]
        return np.zeros(last - first, np.bool_) if self.masks is None else self.masks[first:last]

    def source_lengths(self, rows: Numbers) -> Numbers:
        return self.offsets[2 * rows + 1] - self.offsets[2 * rows]

    def target_lengths(self, rows: Numbers) -> Numbers:
        return self.offsets[2 * rows + 2] - self.offsets[2 * rows + 1]

    def loss_mask_lengths(self, rows: Numbers) -> Numbers:
        """(rows,) tokens of each row that the loss counts; reads no tokens."""
        targets = self.target_lengths(rows)
        return targets if self.source_counts is None else targets + self.source_counts[rows]

    def longest(self) -> tuple[int, int]:
        """Tokens of the longest source and of the longest target."""
        return self.stats.longest_source[1], self.stats.longest_target[1]


def open_store(
    paths: Sequence[str],
    encoder: Encoder,
    columns: Columns = BY_NAME,
    *,
    max_source: int,
    max_target: int,
    progress: Callable[[Tokenising], None] | None = None,
    should_stop: Callable[[], bool] = bool,
) -> TokenStore:
    """The store of those files; tokenises them if no store exists yet.

    `progress` is called about twice a second meanwhile, also while another process tokenises.

    Raises:
        DataError: a file cannot be read as prompts and responses.
        OutputError: the cache folder cannot be written.
        Interrupted: `should_stop` said so; the next call resumes there.
    """
    folder = cache_folder() / _name(paths, encoder, columns, max_source, max_target)
    partial = folder.with_name(f".partial-{folder.name}")
    if not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = folder.with_name(f".lock-{folder.name}")
            with _acquired(FileLock(lock), partial, paths, progress, should_stop):
                if not folder.exists():  # else another process has made it meanwhile
                    tokenise(
                        partial, paths, encoder, columns, max_source=max_source, max_target=max_target,
                        progress=progress, should_stop=should_stop,
                    )  # fmt: skip
                    partial.rename(folder)
        except OSError as error:
            raise OutputError(
                f"cannot write the token cache {folder.parent}: {error.strerror}",
                "set CHATLM_CACHE to a folder with space",
            ) from error
    return read_store(folder)


def _acquired(
    lock: FileLock,
    partial: Path,
    paths: Sequence[str],
    progress: Callable[[Tokenising], None] | None,
    should_stop: Callable[[], bool],
) -> AbstractContextManager[object]:
    """The lock, held until the block ends; the kernel releases it when its holder dies.

    Reports the progress of the process that holds it, and stops when asked.
    """
    while True:
        try:
            return lock.acquire(timeout=0)
        except Timeout as held:
            if should_stop():
                raise Interrupted("interrupted while another process tokenises") from held
            if progress is not None and (stats := StoreStats.read(partial)):
                progress(stats.progress(count_rows(paths)))
            time.sleep(TELL_EVERY)


def read_store(folder: Path) -> TokenStore:
    """The store in that folder."""
    stats = StoreStats.read(folder)
    assert stats is not None, folder

    def mapped(name: str, kind: Any) -> Any:
        return np.memmap(folder / name, dtype=kind, mode="r")

    return TokenStore(
        folder,
        stats,
        mapped("tokens.bin", np.dtype(f"u{stats.width}")),
        mapped("offsets.bin", np.int64),
        mapped("loss_mask.bin", np.bool_) if stats.has_loss_mask else None,
        mapped("source_counts.bin", np.int32) if stats.has_loss_mask else None,
    )


def cache_folder() -> Path:
    """`$CHATLM_CACHE`, or `chatlm` in the user's cache folder."""
    if own := os.environ.get("CHATLM_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatlm"


def _name(
    paths: Sequence[str], encoder: Encoder, columns: Columns, max_source: int, max_target: int
) -> str:
    digest = hashlib.sha256(
        f"{VERSION} {encoder.tokenizer_hash} {columns} {max_source} {max_target}".encode()
    )
    for path in paths:
        check_file(path)
        try:
            with Path(path).open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()[:24]
