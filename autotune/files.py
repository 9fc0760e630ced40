"""Files and folders: whether a place can be written, and writes that appear whole or not at all."""

import errno
import glob
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from autotune.errors import OutputError

SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Opens no link, and does not wait for a pipe's other end."""
MOST_BYTES = 64 << 20
"""Of a file that describes something. An optimizer's plain numbers, the largest of them, take 100 bytes a weight."""


def open_plain(path: Path, flags: int = os.O_RDONLY) -> IO[bytes]:
    """The file, opened for reading, or with `os.O_WRONLY | …` for writing.

    Raises:
        OSError: it is missing, or a link, a folder, a pipe or a device.
    """
    descriptor = os.open(path, flags | SAFELY, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is no plain file")
    return os.fdopen(descriptor, "wb" if flags & os.O_WRONLY else "rb")


def read_small(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a plain file that describes something.

    Raises:
        OSError: as `open_plain` does, or it is larger than any such file.
    """
    with open_plain(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most >> 20} MiB")
    return content


def is_inside(name: str) -> bool:
    """Whether a name that a file gives, like `a/b`, names something inside the folder that it is joined to."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # half a character
        return False
    parts = PurePosixPath(name).parts
    return bool(parts) and "\0" not in name and not {"/", "//", ".."} & {*parts}


def remove(path: Path) -> None:
    """Removes a file, a link or a whole folder, if it is there; a link's target stays.

    Raises:
        OSError: no permission.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def free_name(path: Path) -> Path:
    """The path, or `NAME-2`, `NAME-3`, … where that is taken."""
    name, number = path, 1
    while os.path.lexists(name):
        number += 1
        name = path.with_name(f"{path.name}-{number}")
    return name


def nearest(path: Path) -> Path:
    """The path, or the nearest one above it that exists; a broken link counts as existing.

    Raises:
        OSError: a name that no folder can have, or a folder that may not be looked into.
    """
    folders = (path, *path.absolute().parents)
    return next(folder for folder in folders if folder.exists() or folder.is_symlink())


def check_writable(folder: Path, advice: str) -> None:
    """Writes a temporary file into the folder, or the nearest one above it that exists.

    Raises:
        OutputError: no permission, no space, or no folder can be there; `advice` is its hint.
    """
    try:
        with tempfile.TemporaryFile(dir=nearest(folder)) as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror}", advice) from error


@contextmanager
def temporary_files() -> Iterator[None]:
    """Names TMPDIR when no temporary file can be made in the block.

    Raises:
        OutputError: no folder for temporary files can be written, or it is full.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot make a temporary file: {error.strerror}",
            "set TMPDIR to a folder that you can write to and that has space",
        ) from error


def sync(path: Path) -> None:
    """Returns once the file, or the folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, as UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces the file whole, or the link that is there; after an error the old one is still there.

    Raises:
        OSError: no space, or no permission.
    """
    # two processes may save one profile at the same time
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # of an earlier process, or a link
    try:
        with open_plain(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def is_found(name: str) -> bool:
    """Whether it names a file or a folder, or a pattern that matches one."""
    try:
        return Path(name).exists() or any(glob.iglob(name, recursive=True))  # noqa: PTH207
    except (
        OSError,
        ValueError,
        RecursionError,
    ):  # too long, a NUL, too deep, not to be looked into
        return False


def find_beside(name: str, folder: Path) -> str:
    """The name, as the current folder finds it, else as `folder` does; unchanged if neither does."""
    beside = str(folder.absolute() / name)
    return beside if name and not is_found(name) and is_found(beside) else name


def absolute(name: str) -> str:
    """The name as any folder finds it; unchanged if it finds nothing here, as a hub id."""
    return os.path.abspath(name) if name and is_found(name) else name  # noqa: PTH100  resolves `..`


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with None for what JSON cannot hold: an overflowed norm, a diverged loss."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }


@contextmanager
def appearing(final: Path) -> Iterator[Path]:
    """A folder to fill, hidden beside `final`; renamed to it at the end, removed on an error."""
    temporary = final.with_name(f".{final.name}")
    remove(temporary)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        sync(temporary)
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(final.parent)
