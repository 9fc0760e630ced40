"""Ways to damage a file: its bytes, its document, or the place where it is. Every choice is `draw`'s."""

import copy
import json
import os
import shutil
import stat
import struct
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import tomli_w

from bench.fuzz.case import remove

TEXTS = (
    "", " ", "\n", "x", "..", ".", "../..", "a/b", "../outside/canary.txt", "./.", "~", "*", "**/*", "[", "{0}%s",
    "https://example.org/x", "owner/name", "None", "nan", "-1", "1e400", "٣", "²", "名前", "é" * 90, "👩‍👩‍👧",
    "\x1b[2J\x1b]0;title\x07", "\x9b31m", "a\rb", "\x00", "a\u202eb\u2066c\u200f", "\u2028\u2029", "\ufeff", "\ud800",
    "\udcff", "\U000e0041", "n" * 255, "n" * 256, "long " * 1000, "x" * 100_000, "\x1b" * 3000,
)  # fmt: skip
"""Names and values that nobody expects. No absolute path: a reader that removes files must not find ours."""
FILE_NAMES = [text for text in TEXTS if 0 < len(text) < 100 and not {*"/\0\ud800"} & {*text}]
"""The texts that a file can be called, with a suffix; one is no UTF-8."""
RAW = {
    "<digits>": "9" * 5000,
    "<float>": "1e999",
    "<nested>": "[" * 50_000 + "]" * 50_000,
    "<open>": "[" * 3000,
}
"""Values that no encoder writes, by the text that stands for them until the document is written."""
VALUES: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 255, 2**31, 2**32 + 1, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, -(10**30), 10**4000,
    0.0, -0.0, 0.5, 1e-300, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), True, False, None,
    [], {}, [[]], [None], [0] * 2000, {"": ""}, {"a": {"b": []}}, [{"role": "user"}], date(1, 1, 1), *RAW,
)  # fmt: skip
PIECES = (
    b"\x00", b"\xff", b"\x1b[31m", b"\xc2\x9b", b"\xe2\x80\xae", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf",
    b"\n", b"\r\n", b"\r", b'"', b"'", b",", b";", b"\t", b"{", b"}", b"[", b"]", b"=", b"#", b"\\u", b"\\ud800",
    b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"x" * 70_000, b"\x00" * 4096, b"PAR1", b"ARROW1", b"\x1f\x8b",
    b"\x28\xb5\x2f\xfd", b"NaN", b"-Infinity", b"null", b"1e999", b"\xff\xfe", b"\xfe\xff",
)  # fmt: skip
"""Bytes that mean something to a reader."""
NUMBERS = (0, 1, -1, 127, 128, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
SPARSE = 3 << 29
"""Bytes of a file that is mostly a hole: more than a reader may hold."""


def damage_bytes(data: bytes, draw: Random, others: Sequence[bytes] = ()) -> bytes:
    """The data after one to four changes; `others` are files to splice with."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        data = _change_bytes(data, draw, others)
    return data


def _change_bytes(data: bytes, draw: Random, others: Sequence[bytes]) -> bytes:
    first = draw.randrange(len(data) + 1)
    last = min(len(data), first + draw.choice((1, 2, 8, 64, 1024)))
    head, piece, tail = data[:first], data[first:last], data[last:]
    match draw.randrange(11):
        case 0 | 1:  # a flipped bit
            flipped = bytes(byte ^ 1 << draw.randrange(8) for byte in piece[:1])
            return head + flipped + data[first + 1 :]
        case 2:
            return head
        case 3:
            return head + tail
        case 4:
            return head + piece * draw.choice((2, 3, 100)) + tail
        case 5:
            return head + draw.choice(PIECES) + data[first:]
        case 6:
            return head + draw.choice(PIECES) + tail
        case 7:
            other = draw.choice([*others, data])
            return head + other[draw.randrange(len(other) + 1) :]
        case 8:
            return head + bytes(len(piece)) + tail
        case 9:
            return head + draw.randbytes(len(piece)) + tail
        case _:
            place = first if draw.random() < 0.5 else first // 8 * 8
            form = draw.choice(("<I", ">I", "<Q", ">Q"))
            size = struct.calcsize(form)
            number = struct.pack(form, draw.choice(NUMBERS) % (1 << 8 * size))
            return data[:place] + number + data[place + size :]


def damage_document(document: Any, draw: Random, texts: Sequence[str] = TEXTS) -> Any:
    """A copy with one to three of its values or keys changed; `texts` are the names to put in."""
    document = copy.deepcopy(document)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(document))
        if not places:
            return odd_value(draw, texts)
        holder, key = draw.choice(places)
        _change_value(holder, key, draw, places, texts)
    return document


def _places(document: Any) -> Any:
    """Every (list or dictionary, key) of the document."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(document, dict):
        pairs = list(document.items())
    elif isinstance(document, list):
        pairs = list(enumerate(document[:50]))
    for key, value in pairs:
        yield document, key
        yield from _places(value)


def _change_value(
    holder: Any, key: Any, draw: Random, places: Sequence[Any], texts: Sequence[str]
) -> None:
    match draw.randrange(10):
        case 0:
            del holder[key]
        case 1:
            there, other = draw.choice(places)
            holder[key] = copy.deepcopy(there[other] if _has(there, other) else None)
        case 2 if isinstance(holder, dict):
            holder[draw.choice((*texts, *map(str, holder), f"{key}x"))] = holder.pop(key)
        case 2:
            holder.append(copy.deepcopy(holder[key]))
        case 3 if isinstance(holder, dict):
            holder[draw.choice((*texts, "unknown"))] = odd_value(draw, texts)
        case 4:
            holder[key] = [copy.deepcopy(holder[key])]
        case 5:
            holder[key] = {str(draw.choice(texts)): copy.deepcopy(holder[key])}
        case 6:
            holder[key] = str(holder[key])[:100]
        case 7 if isinstance(holder[key], int):
            holder[key] += draw.choice((-1, 1, 2**31, 2**63, 10**18))
        case _:
            holder[key] = odd_value(draw, texts)


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def odd_value(draw: Random, texts: Sequence[str] = TEXTS) -> Any:
    """A value, or a list or a table of one."""
    value = draw.choice(texts) if draw.random() < 0.5 else copy.deepcopy(draw.choice(VALUES))
    match draw.randrange(8):
        case 0:
            return [value]
        case 1:
            return {str(draw.choice(texts)): value}
        case _:
            return value


def as_json(document: Any, draw: Random) -> bytes:
    """The document with RAW values in their places; half of the time with `\\u` escapes."""
    text = json.dumps(document, ensure_ascii=draw.random() < 0.5, default=str)
    return _with_raw(text)


def as_toml(document: Any) -> bytes:
    """The document with RAW values in their places, and without nulls, which TOML lacks."""
    return _with_raw(tomli_w.dumps(_without_null(document)))


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_null(each) for each in value if each is not None]
    return value


def _with_raw(text: str) -> bytes:
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode("utf-8", "surrogatepass")


def is_whole(path: Path) -> bool:
    """Whether it is a file that can be read and damaged once more: no link, no pipe, no hole."""
    try:
        about = path.lstat()
    except OSError:
        return False
    is_readable = stat.S_ISREG(about.st_mode) and bool(about.st_mode & stat.S_IRUSR)
    return is_readable and about.st_size < SPARSE


def damage_place(path: Path, draw: Random, outside: Path) -> None:
    """Puts something else where the file or folder is; links lead to `outside` at the farthest."""
    aside = path.with_name("aside")
    if not path.is_symlink() and path.exists():
        path.rename(aside)
    else:
        path.unlink(missing_ok=True)
        aside.write_bytes(b"{}")
    match draw.randrange(13):
        case 0:
            pass
        case 1:
            path.mkdir()
        case 2:
            shutil.copytree(outside, path)
        case 3:
            os.mkfifo(path)
        case 4:
            path.write_bytes(b"")
        case 5:
            path.touch()
            os.truncate(path, SPARSE)
        case 6:
            aside.rename(path).chmod(0)
        case number:
            links = ("canary.txt", "folder", "nowhere", path.absolute(), "/dev/null", "/dev/zero")
            path.symlink_to(outside / links[number - 7])
    remove(aside)
