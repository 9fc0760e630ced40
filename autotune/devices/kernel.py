"""The kernel's small text files, /proc and cgroups, read often enough that their cost counts.

Knows no file by name and no meaning. An unbuffered read costs 6 µs where `Path.read_text` costs 16
(/proc/self/statm; one virtual x86 core, Linux 6.18, Python 3.11, 2026-11), and a meter reads tens of
files twenty times a second.
"""

import os
from pathlib import Path

CHUNK = 16384
"""Bytes asked for at once; the kernel gives a page at most of a file that has many records."""


def contents(file: str | Path) -> bytes:
    """The whole file.

    Raises:
        OSError: it is gone, as when its process has ended, or closed to us.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(descriptor, CHUNK)
        while more := os.read(descriptor, CHUNK):
            text += more
        return text
    finally:
        os.close(descriptor)


def field(text: bytes, key: bytes) -> int | None:
    """The number after `key` in the line that begins with it; None without such a line.

    The key includes what follows it: `Pss:`, or `oom_kill ` with its space.
    """
    words = (b"\n" + text).partition(b"\n" + key)[2].split(None, 1)
    return int(words[0]) if words else None
