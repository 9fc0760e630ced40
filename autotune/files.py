"""Files and folders: whether a place can be written, and writes that appear whole or not at all."""

import glob
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autotune.errors import OutputError


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
    """Replaces the file whole; after an error the old one is still there.

    Raises:
        OSError: no space, or no permission.
    """
    # two processes may save one profile at the same time
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
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
    shutil.rmtree(temporary, ignore_errors=True)
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


def remove_folder(path: Path) -> None:
    """Renames the folder, then removes it: nobody sees half of it under its name."""
    hidden = path.with_name(f".{path.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    path.rename(hidden)
    shutil.rmtree(hidden)
