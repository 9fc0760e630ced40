"""Whether a place can be written, found out before the work that ends there."""

import os
import tempfile
from pathlib import Path

from autotune.errors import OutputError


def nearest(path: Path) -> Path:
    """The path, or the nearest one above it that exists; a link to nowhere does.

    Raises:
        OSError: a name that no folder can have, or a folder that may not be looked into.
    """
    folders = (path, *path.absolute().parents)
    return next(folder for folder in folders if folder.exists() or folder.is_symlink())


def check_writable(folder: Path, advice: str) -> None:
    """Tries the folder, or the nearest one above it that exists, with a real file.

    Raises:
        OutputError: no permission, no space, or no folder can be there; it ends with the advice.
    """
    try:
        with tempfile.TemporaryFile(dir=nearest(folder)) as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror}", f"{advice}") from error
