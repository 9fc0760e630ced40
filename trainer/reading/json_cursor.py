"""A place in a JSON text of any size, which is read a piece at a time.

Not by ijson, which is a third faster (200,000 rows of 200 bytes: 1.1 s, here 1.4 s): its parser in C
silently turns half a surrogate pair into `?`, and refuses the NaN that Python writes.
"""

import codecs
import itertools
import json
import re
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

from autotune.units import format_bytes
from trainer.reading.faults import ROW_BYTES, ROW_VALUES, VALUE_BYTES, kind, shown

PIECE = 1 << 20
"""Bytes that are read at once."""
TAIL = 16
"""Characters at the end of a piece that may be the beginning of a longer word, as `-Infinity`."""


class TooLarge(Exception):
    """A value takes more than a row may; the text says in which way. No ValueError, as DuplicateKey."""


class DuplicateKey(Exception):
    """An object has a key twice. No ValueError: more text would not mend it."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {shown(key)} is there twice")
        self.key = key


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DuplicateKey(next(key for key in keys if keys.count(key) > 1))
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_SPACE = re.compile(r"[ \t\n\r]*")
_NEXT_VALUE = re.compile(
    r'[^"\[{,]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"?[^"\[{,]*+)*+(?:[\[{,]|\Z)', re.DOTALL
)
"""Through the next bracket or comma that is in no string: nearly all values follow one."""
DIGITS = f"a number has over {sys.get_int_max_str_digits():,} digits"
LARGE = f"takes over {format_bytes(ROW_BYTES)}, more than a row may"
MANY = f"has over {ROW_VALUES:,} values, more than a row may"


def check_values(text: str) -> None:
    """Raises TooLarge where it has so many values that they take much more memory than the text."""
    values = itertools.islice(_NEXT_VALUE.finditer(text), ROW_VALUES, None)
    if next(values, None) is not None:
        raise TooLarge(MANY)


def parse(text: str) -> Any:
    """The value of a whole JSON text. Raises ValueError, RecursionError, DuplicateKey or TooLarge."""
    if len(text) > PIECE:
        check_values(text)
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # whose text tells to change Python's limit
        raise ValueError(DIGITS) from error


class Cursor:
    """A place in a JSON text that is read a piece at a time."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._text, self._place, self._is_all = "", 0, False
        self._passed_characters = self._passed_lines = 0

    @property
    def passed(self) -> int:
        """Characters before this place."""
        return self._passed_characters + self._place

    @property
    def lines(self) -> int:
        """Line ends before this place."""
        return self._passed_lines + self._text.count("\n", 0, self._place)

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            self._place = _SPACE.match(self._text, self._place).end()  # type: ignore[union-attr]
            if self._place < len(self._text) or self._is_all:
                return self._text[self._place : self._place + 1]
            self._more(PIECE)

    def take(self, *due: str) -> str:
        """The next character, which must be one of those, and moves past it."""
        found = self.peek()
        if found not in due:
            raise ValueError(f"{found or 'the end'!r} where {' or '.join(due)} is due")
        self._place += 1
        return found

    def value(self) -> Any:
        """The value that begins here, and moves past it."""
        self.peek()
        while True:
            try:
                item, end = _DECODER.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                is_cut = error.pos + TAIL > len(self._text) or error.msg.startswith("Unterminated")
                if self._is_all or not is_cut:  # its text has a place, which counts from the piece
                    raise ValueError(error.msg) from error
            except ValueError as error:
                raise ValueError(DIGITS) from error
            else:  # until the character after it is read: `1` may continue as `12`
                if self._is_all or end < len(self._text):
                    if end - self._place > ROW_BYTES:
                        raise TooLarge(LARGE)
                    self._place = end
                    return item
            if (known := len(self._text) - self._place) > ROW_BYTES:
                raise TooLarge(LARGE)
            if known > PIECE:
                check_values(self._text[self._place :])
            self._more(min(max(known, PIECE), 2 * PIECE))

    def members(self) -> Iterator[str]:
        """Enters a list or an object; before each item, which the caller must pass, yields its key.

        A list's keys are empty.
        """
        is_list = self.take("[", "{") == "["
        close = "]" if is_list else "}"
        if self.peek() == close:
            self._place += 1
            return
        while True:
            key = ""
            if not is_list:
                if not isinstance(key := self.value(), str):
                    raise ValueError(f"{kind(key)} where a key is due")
                self.take(":")
            yield key
            if (follows := self.peek()) not in (",", close):
                due = "a comma or the list's end" if is_list else "a comma or the object's end"
                raise ValueError(f"{follows or 'the end'!r} where {due} is due")
            self._place += 1
            if follows == close:
                return

    def unique_keys(self) -> Iterator[str]:
        """Enters an object as `members` does; raises DuplicateKey, and TooLarge for more keys than a row's."""
        passed: set[str] = set()
        size = 0
        for key in self.members():
            if key in passed:
                raise DuplicateKey(key)
            passed.add(key)
            size += VALUE_BYTES + len(key)
            if size > ROW_BYTES:
                raise TooLarge(MANY)
            yield key

    def skip(self) -> None:
        """Moves past the value that begins here, and holds one item of it at a time."""
        if self.peek() in ("[", "{"):
            for _ in self.members():
                self.value()
        else:
            self.value()

    def check_end(self) -> None:
        """Raises ValueError where anything follows."""
        if rest := self.peek():
            raise ValueError(f"{rest!r} after the list's end")

    def _more(self, size: int) -> None:
        self._passed_lines = self.lines
        self._passed_characters = self.passed
        read = self._stream.read(size)
        self._is_all = not read
        self._text = self._text[self._place :] + self._decode(read, final=self._is_all)
        self._place = 0
