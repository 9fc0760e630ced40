"""Whether a token store is as it was written: owner, names, sizes, checksums, and that its parts agree.

Each file is read once from start to end, a piece at a time (0.4 s/GB on a Xeon). What tokens mean is not known here.
"""

import errno
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from autotune.files import SAFELY
from trainer.data.cache_folder import OTHERS_WRITE, check_ours, is_ours
from trainer.data.store_stats import MOST_BYTES, NAME, Damaged, StoreStats

PIECE = 1 << 20
"""Bytes that are read at once."""
UNREADABLE = (
    errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EIO, errno.EACCES,
)  # fmt: skip
"""Errors that a new file would not have; others, such as too many open files, are not the store's."""


def check_store(folder: Path, name: str, width: int) -> StoreStats:
    """The stats of the whole store of that name, whose tokens have that many bytes.

    Raises:
        FileNotFoundError: there is no store.
        Damaged: it cannot be used.
        OutputError: it is another user's.
    """
    _check_folder(folder)
    stats = _checked_stats(folder, name, width)
    if not stats.digest:
        raise Damaged(f"{NAME} is of an unfinished store")
    names, wanted = {file.name for file in folder.glob("*.bin")}, stats.sizes().keys()
    for file in sorted(names ^ wanted):
        raise Damaged(f"{file} is missing" if file in wanted else f"{file} does not belong there")
    for file, size in stats.sizes().items():
        with open_file(folder / file) as stream:
            held = os.fstat(stream.fileno()).st_size
            if held != size:
                raise Damaged(f"{file} has {held:,} bytes instead of {size:,}")
    found = StoreStats(name=name, width=width)
    _read_offsets(folder, stats, found)
    _read_tokens(folder, stats, found)
    if stats.has_loss_mask:
        _read_loss_mask(folder, stats)
    for place in ("longest_source", "longest_target", "longest_both", "largest_id"):
        if getattr(found, place) != getattr(stats, place):
            raise Damaged(f"{NAME} has another {place.replace('_', ' ')} than the tokens")
    return stats


def check_part(folder: Path, fresh: StoreStats) -> StoreStats:
    """The stats of an unfinished store, whose files may be longer than these say; `fresh` if it has none.

    Raises:
        FileNotFoundError, Damaged, OutputError: as `check_store` does.
    """
    _check_folder(folder)
    if not os.path.lexists(folder / NAME):  # it was ended before its first save
        return fresh
    stats = _checked_stats(folder, fresh.name, fresh.width)
    for name, size in stats.sizes().items():
        with open_file(folder / name) as file:
            status = os.fstat(file.fileno())
            if status.st_size < size:
                raise Damaged(f"{name} has {status.st_size:,} bytes instead of {size:,}")
            if status.st_nlink > 1:  # it is to be written, and another name may be a copy
                raise Damaged(f"{name} is a hard link")
        _check_content(folder, name, stats)
    return stats


def read_stats(folder: Path) -> StoreStats:
    """Raises Damaged where they are missing or not as they were written."""
    with open_file(folder / NAME) as file:
        return StoreStats.parse(file.read(MOST_BYTES))


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """A file of a store, for reading; follows no link and waits for no pipe.

    Raises:
        Damaged: it is missing, cannot be read, is no file, or others may have written it.
    """
    try:
        with open(path, "rb", opener=_safely) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Damaged(f"{path.name} is no plain file")
            if not is_ours(status) or status.st_mode & OTHERS_WRITE:
                raise Damaged(f"other users may have written {path.name}")
            yield file
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        raise Damaged(f"{path.name} cannot be read: {error.strerror}") from error


def _safely(name: str, flags: int) -> int:
    return os.open(name, flags | SAFELY)


def _check_folder(folder: Path) -> None:
    mode = folder.lstat().st_mode
    if not stat.S_ISDIR(mode):
        raise Damaged(f"{folder.name} is {'a link' if stat.S_ISLNK(mode) else 'no folder'}")
    check_ours(folder)
    if mode & OTHERS_WRITE:
        raise Damaged(f"other users may have written {folder.name}")


def _checked_stats(folder: Path, name: str, width: int) -> StoreStats:
    stats = read_stats(folder)
    if (stats.name, stats.width) != (name, width):
        raise Damaged(f"{NAME} is of other data")
    if not stats.tokens:
        raise Damaged(f"{NAME} has no tokens")
    return stats


def _read_offsets(folder: Path, stats: StoreStats, found: StoreStats) -> None:
    """Notes the longest rows in `found`."""
    name = "offsets.bin"
    with open_file(folder / name) as file:
        first = file.read(8)
        checksum, last, row = (
            zlib.crc32(first),
            int.from_bytes(first, sys.byteorder, signed=True),
            0,
        )
        is_rising = last == 0
        for piece in _pieces(file, 16 * stats.rows):
            checksum = zlib.crc32(piece, checksum)
            ends = np.frombuffer(piece, np.int64)
            begins = np.concatenate(([last], ends[:-1]))
            is_rising &= bool((begins <= ends).all())
            found.note_longest(row, ends - begins)
            row, last = row + len(ends) // 2, int(ends[-1])
    _compare(name, checksum, stats)
    if not is_rising or last != stats.tokens:
        raise Damaged(f"{name} does not rise from 0 to {stats.tokens:,}")


def _read_tokens(folder: Path, stats: StoreStats, found: StoreStats) -> None:
    """Notes the largest token id in `found`."""
    name = "tokens.bin"
    checksum = read = place = largest = 0
    with open_file(folder / name) as file:
        for piece in _pieces(file, stats.width * stats.tokens):
            checksum = zlib.crc32(piece, checksum)
            tokens = np.frombuffer(piece, f"u{stats.width}")
            if tokens.max() > largest:
                place, largest = read + int(tokens.argmax()), int(tokens.max())
            read += len(tokens)
    _compare(name, checksum, stats)
    with open_file(folder / "offsets.bin") as file:
        ends = np.memmap(file, np.int64, mode="r")[1:]
        found.largest_id = [int(np.searchsorted(ends, place, side="right")) // 2, largest]


def _read_loss_mask(folder: Path, stats: StoreStats) -> None:
    checksum, is_mask = 0, True
    with open_file(folder / "loss_mask.bin") as file:
        for piece in _pieces(file, stats.tokens):
            checksum = zlib.crc32(piece, checksum)
            is_mask &= bool(np.frombuffer(piece, np.uint8).max() <= 1)
    _compare("loss_mask.bin", checksum, stats)
    if not is_mask:
        raise Damaged("loss_mask.bin is no mask")
    _check_content(folder, "source_counts.bin", stats)


def _check_content(folder: Path, name: str, stats: StoreStats) -> None:
    """Compares the part of the file that the stats know with its checksum."""
    checksum = 0
    with open_file(folder / name) as file:
        for piece in _pieces(file, stats.sizes()[name]):
            checksum = zlib.crc32(piece, checksum)
    _compare(name, checksum, stats)


def _compare(name: str, checksum: int, stats: StoreStats) -> None:
    if stats.checksums.get(name) != checksum:
        raise Damaged(f"{name} has another checksum")


def _pieces(file: BinaryIO, size: int) -> Iterator[memoryview]:
    """The next `size` bytes; each piece is overwritten by the next one."""
    view = memoryview(bytearray(min(size, PIECE)))
    while size:
        piece = view[: min(size, PIECE)]
        if file.readinto(piece) < len(piece):  # type: ignore[attr-defined]
            raise Damaged(f"{Path(file.name).name} became shorter while it was read")
        size -= len(piece)
        yield piece
