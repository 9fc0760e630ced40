"""Tokens on disk: tokenised once, then memory-mapped, so host memory does not grow with the rows.

A store is a folder of files (see `tokenization`), named by a hash of data, tokenizer and settings.
While it is incomplete its name is `.partial-<name>`; one process writes it and the others wait. A store is
checked when it is opened, and made anew if it is damaged.
"""

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from autotune.errors import OutputError
from autotune.units import format_bytes
from trainer.data.cache_folder import (
    ELSEWHERE,
    make_private,
    private_folder,
    refusals,
    remove,
)
from trainer.data.contents import FileContents
from trainer.data.encoder import Encoder
from trainer.data.store_check import check_part, check_store, open_file, read_stats
from trainer.data.store_lock import locked
from trainer.data.store_stats import NAME, Damaged, StoreStats
from trainer.data.tokenization import tokenise
from trainer.events import Tokenising
from trainer.reading.layouts import BY_NAME, Columns
from trainer.reading.readers import count_rows

VERSION = 6
"""Part of the name: a change of format or of encoding makes old stores unreachable."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a full disk, and of a quota that is used up."""

_TOLD: set[str] = set()
"""Names of the stores whose damage this process has told."""

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
        """Pickles no array: a loader worker maps the same pages, which were checked."""
        return read_store, (self.folder, self.stats)

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
    notify: Callable[[str], object] = lambda text: None,
    should_stop: Callable[[], bool] = bool,
) -> TokenStore:
    """The store of those files; tokenises them if there is none, or if it is damaged.

    `progress` is called about twice a second meanwhile, also while another process tokenises. `notify` gets
    a line about a damaged store.

    Raises:
        DataError: a file cannot be read as prompts and responses, or changes while it is read.
        OutputError: the cache folder cannot be written, is not safe, or damages what is written to it.
        Interrupted: `should_stop` said so; the next call resumes there.
    """
    files = FileContents(paths)
    name = _name(files, encoder, columns, max_source, max_target)
    width = np.dtype(encoder.dtype).itemsize

    def tell(folder: Path, damage: str) -> None:
        _TOLD.add(name)
        notify(f"the token store {folder} was damaged ({damage}): the data are tokenised again")

    with refusals():
        folder = private_folder() / name
        partial = folder.with_name(f".partial-{name}")
        has_made = False
        while True:
            seen = _identity(folder)
            try:
                store = read_store(folder, check_store(folder, name, width))
                break
            except FileNotFoundError:
                damage = None
            except Damaged as found:
                damage = str(found)
            if has_made:
                raise OutputError(
                    f"the token store {folder} is damaged just after it was made ({damage})",
                    f"check the disk (dmesg), or {ELSEWHERE} on another one",
                )
            with locked(folder, partial, paths, progress, should_stop), _space(partial, paths):
                if _identity(folder) != seen:  # another process has made it meanwhile
                    continue
                if damage:
                    tell(folder, damage)
                    remove(folder)
                kept = _begin(partial, StoreStats(name=name, width=width, damage=damage), tell)
                tokenise(
                    partial, kept, files, encoder, columns,
                    max_source=max_source, max_target=max_target,
                    progress=progress, should_stop=should_stop,
                )  # fmt: skip
                partial.rename(folder)
                has_made = True
        if store.stats.damage and name not in _TOLD and _is_new(folder):  # another rank made it
            tell(folder, store.stats.damage)
        return store


def read_store(folder: Path, stats: StoreStats) -> TokenStore:
    """The store in that folder, which was checked.

    Raises:
        Damaged: a file is not there any more, or is another user's.
    """

    def mapped(name: str, kind: Any) -> Any:
        with open_file(folder / name) as file:
            return np.memmap(file, dtype=kind, mode="r")

    return TokenStore(
        folder,
        stats,
        mapped("tokens.bin", np.dtype(f"u{stats.width}")),
        mapped("offsets.bin", np.int64),
        mapped("loss_mask.bin", np.bool_) if stats.has_loss_mask else None,
        mapped("source_counts.bin", np.int32) if stats.has_loss_mask else None,
    )


def _begin(partial: Path, fresh: StoreStats, tell: Callable[[Path, str], None]) -> StoreStats:
    """The stats of what an interruption left, else `fresh` and an empty folder."""
    try:
        return check_part(partial, fresh)
    except FileNotFoundError:
        pass
    except Damaged as found:
        fresh.damage = str(found)
        tell(partial, fresh.damage)
        remove(partial)
    make_private(partial)
    return fresh


def _identity(folder: Path) -> tuple[int, int, int] | None:
    """Another one for each folder that ever has the name; None without one."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _is_new(folder: Path) -> bool:
    """Whether the store was made since this process began."""
    began: float = psutil.Process().create_time()
    return (folder / NAME).stat().st_mtime >= began


@contextmanager
def _space(partial: Path, paths: Sequence[str]) -> Iterator[None]:
    """Says how much space a store needs where it runs out, and that the folder was removed where it was."""
    try:
        yield
    except FileNotFoundError as error:
        raise OutputError(
            f"the token cache {partial.parent} was removed while it was written",
            "run the command again",
        ) from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        free = shutil.disk_usage(partial.parent).free
        numbers = [f"{format_bytes(free)} are free"]
        with suppress(Damaged):  # nothing is saved yet
            stats, total = read_stats(partial), count_rows(paths)
            size = sum(stats.sizes().values())
            numbers.append(f"{stats.rows:,} rows take {format_bytes(size)}")
            if total is not None:
                need = format_bytes(size * total / stats.rows)
                numbers.append(f"all {total:,} need about {need}")
        raise OutputError(
            f"cannot write the token cache {partial.parent}: {error.strerror} ({', '.join(numbers)})",
            "free some, or set CHATLM_CACHE to a folder with space",
        ) from error


def _name(
    files: FileContents, encoder: Encoder, columns: Columns, max_source: int, max_target: int
) -> str:
    digest = hashlib.sha256(
        f"{VERSION} {encoder.tokenizer_hash} {columns} {max_source} {max_target}".encode()
    )
    for path in files.paths:
        digest.update(files.digests[path])
    return digest.hexdigest()[:24]
