"""Things that stand where a TOML file should, and what is said of each."""

import os
from collections.abc import Callable
from pathlib import Path


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**30)


def _text(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "it is a pipe, not a file"),
    "folder": (Path.mkdir, "it is a folder, not a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a file"),
    "dangling": (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
    "loop": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    "huge": (_huge, "it is larger than 4 MiB"),
}
"""By name: what makes it at a path, and why it cannot be read."""
MALFORMED: dict[str, tuple[Callable[[Path], object], str]] = {
    "digits": (_text("a = " + "9" * 5000), "has a number of more than 64 bits"),
    "hex": (_text("a = 0x" + "f" * 5000), "has a number of more than 64 bits at 'a'"),
    "bits": (_text(f"a.b = [{2**63}]"), "has a number of more than 64 bits at 'a.b'"),
    "lists": (_text("a = " + "[" * 100_000), "has lists or tables deeper than 16 levels"),
    "list": (_text("a = " + "[" * 20 + "]" * 20), "has lists or tables deeper than 16 levels"),
    "tables": (_text("a = " + "{a = " * 100_000), "has lists or tables deeper than 16 levels"),
    "dots": (_text("a." * 20_000 + "a = 1"), "has a key of more than 16 parts"),
    "quoted": (_text("[" + "'a' . " * 20_000 + "a]"), "has a key of more than 16 parts"),
    "date": (_text("a = 2020-01-01"), "has a date or time at 'a': write text in quotes"),
    "time": (_text("a = [12:00:00]"), "has a date or time at 'a': write text in quotes"),
    "values": (_text("a = [" + "0," * 100_000 + "]"), "has more than 100,000 values"),
    "bytes": (
        lambda path: path.write_bytes(b"\xff"),
        "is not TOML: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
    ),
    "nul": (
        _text("a = '\0'"),
        "is not TOML: Found invalid character '\\x00' (at line 1, column 6)",
    ),
    "twice": (
        _text(f"[{'a' * 10**6}]\n[{'a' * 10**6}]"),
        f"is not TOML: Cannot declare ('{'a' * 63} … aaa',) twice (at line 2, column 1000001)",
    ),
}
"""By name: what makes it at a path, and what is wrong with it."""
ODD_FILES = {**UNREADABLE, **MALFORMED}
