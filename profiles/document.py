"""TOML files that people write, profiles and run files: read and bounded before anything looks at their values.

It knows nothing of keys; `schema` and `trainer.config.run_config` do.
"""

import datetime
import errno
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from autotune.errors import shortened, shown

MOST_BYTES = 4 * 2**20
MOST_VALUES = 100_000
"""Values of a file, those of all lists and tables; a fault in each is reported with memory of its own."""
MOST_LEVELS = 16
"""How deep lists and tables may lie in each other."""
BITS = 64
"""Of a number; TOML asks for no more."""
PART = r"""(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')"""
DEEP_KEY = re.compile(
    rf"(?:^|[{{,\[])[ \t]*+(?:{PART}[ \t]*+\.[ \t]*+){{{MOST_LEVELS}}}", re.MULTILINE
)
"""A key with many dots. tomllib takes a gigabyte for one with 16,000 (Python 3.11)."""
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_file(path: Path) -> bytes:
    """The bytes of a regular file; never waits for a pipe.

    Raises:
        OSError: it cannot be read, is no regular file, or is too large to be written by a person;
            `strerror` says which.
    """
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "its name has a NUL character")
    if kind := KINDS.get(stat.S_IFMT(path.stat().st_mode)):
        raise OSError(errno.EINVAL, f"it is {kind}, not a file")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        text = file.read(MOST_BYTES + 1) if size <= MOST_BYTES else b""
    if size > MOST_BYTES or len(text) > MOST_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {MOST_BYTES // 2**20} MiB")
    return text


def parse_toml(data: bytes) -> dict[str, Any]:
    """The document, every number within 64 bits, without dates, and not deep.

    Raises:
        ValueError: it is not such a document; the text goes after the file's name.
    """
    try:
        text = data.decode()
        if DEEP_KEY.search(text):
            raise ValueError(f"has a key of more than {MOST_LEVELS} parts")
        document = _loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"is not TOML: {shortened(str(error))}") from error
    _check(document)
    return document


def _loads(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:  # of `int`, for thousands of digits
        raise ValueError(f"has a number of more than {BITS} bits") from error
    except RecursionError as error:
        raise ValueError(f"has lists or tables deeper than {MOST_LEVELS} levels") from error


def _check(document: dict[str, Any]) -> None:
    """Raises ValueError for a value beyond the bounds, with its key where it is known."""
    level: list[tuple[str, Any]] = list(document.items())
    seen = 0
    for _ in range(MOST_LEVELS):
        below: list[tuple[str, Any]] = []
        seen += len(level)
        if seen > MOST_VALUES:
            raise ValueError(f"has more than {MOST_VALUES:,} values")
        for key, value in level:
            match value:
                case dict():
                    place = shortened(key)
                    below += [(f"{place}.{name}", each) for name, each in value.items()]
                case list():
                    below += [(key, each) for each in value]
                case int() if not -(2 ** (BITS - 1)) <= value < 2 ** (BITS - 1):
                    raise ValueError(f"has a number of more than {BITS} bits at {shown(key)}")
                case datetime.date() | datetime.time():
                    raise ValueError(f"has a date or time at {shown(key)}: write text in quotes")
        level = below
    if level:
        raise ValueError(f"has lists or tables deeper than {MOST_LEVELS} levels")
