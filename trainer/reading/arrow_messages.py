"""The messages of an Arrow file or stream as Arrow reads them, in bounded memory.

Arrow would map the file, and die where another program cuts it while it is read, or take all memory that
a message asks for. So each message is read here, without the columns that nobody wants. One that takes too
much is unpacked into a temporary file, which is mapped: no other program has it.

The format: https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc
"""

import io
import mmap
import os
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa

from autotune.units import format_bytes
from trainer.reading.faults import Fault
from trainer.reading.streams import temporary_file, write_unpacked

MAGIC = b"ARROW1"
STREAM = b"\xff\xff\xff\xff"
"""What an Arrow stream begins with; a file begins with MAGIC and holds a stream."""
MEMORY_BYTES = 64 << 20
"""Of the columns of a batch, or of all dictionaries; more lies in a temporary file."""
METADATA_BYTES = 16 << 20
"""Of one message's description."""
SCHEMA_BYTES = 64 << 20
"""Of the names and descriptions of all columns, each as often as it is named."""
SPARE_BYTES = 1 << 20
"""Of columns that nobody wants, which are read rather than passed over."""
SCHEMA, DICTIONARY, BATCH = 1, 2, 3
CODECS = ("lz4", "zstd")


class MessageStream:
    """A file for `pa.ipc.open_stream`, which reads a message in parts of the lengths that they have."""

    closed = False

    def __init__(self, path: str, stream: BinaryIO, schema: Any = None, wanted: Sequence[int] = ()):
        """Of its columns, which the schema lists, only the wanted numbers are read."""
        self._path, self._stream = path, stream
        self._schema, self._wanted = schema, wanted
        self._size = stream.seek(0, os.SEEK_END)
        is_file = self._at(0, len(MAGIC)) == MAGIC
        if is_file and self._at(self._size - len(MAGIC), len(MAGIC)) != MAGIC:
            raise ValueError("its end is missing")
        self._place = 8 if is_file else 0
        self._dictionaries = 0
        self._due: deque[Any] = deque()

    def read(self, size: int) -> Any:
        """The next bytes, as many; fewer at the end."""
        if not self._due:
            try:
                self._due.extend(part for part in self._message() if len(part))
            except (struct.error, IndexError, OverflowError) as error:
                raise ValueError("the description of a message is damaged") from error
        if not self._due:
            return b""
        part = self._due.popleft()
        if len(part) > size:
            self._due.appendleft(part[size:])
            return part[:size]
        return part

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        """The caller's file stays open."""

    def _at(self, place: int, size: int) -> bytes:
        self._stream.seek(max(0, place))
        return self._stream.read(size)

    def _message(self) -> tuple[Any, ...]:
        """The next message: its prefix, its description, its body; empty at the end."""
        prefix = self._at(self._place, 8)
        if not prefix.startswith(STREAM):  # before 2019 the length came first
            prefix = prefix[:4]
        size = int.from_bytes(prefix[-4:], "little", signed=True) if len(prefix) >= 4 else 0
        if size <= 0:
            return (prefix,)
        if size > METADATA_BYTES:
            what = f"describes a message in {format_bytes(size)}"
            raise Fault(f"{what}; the limit is {format_bytes(METADATA_BYTES)}", "write it anew")
        about = Table.root(self._at(self._place + len(prefix), size))
        kind, length = about.number(1, "B"), about.number(3, "q")
        first = self._place + len(prefix) + size
        if length < 0 or first + length > self._size:
            raise ValueError(f"it ends within a message of {format_bytes(length)}")
        self._place = first + length
        content = about.table(2)
        if kind == SCHEMA and content:
            check_schema(content)
        if kind not in (DICTIONARY, BATCH) or content is None:
            if length > SPARE_BYTES:
                raise ValueError(f"it has a message of kind {kind}")
            return prefix, about.data, self._at(first, length)
        body = self._body(about, content, kind, first, length)
        return prefix, about.data, body

    def _body(self, about: "Table", content: "Table", kind: int, first: int, length: int) -> Any:
        """The message's buffers; where they were moved, the description says so."""
        batch = content.table(1) if kind == DICTIONARY else content
        if batch is None:
            raise ValueError("a dictionary has no values")
        buffers, codec = list(batch.buffers()), batch.table(3)
        if any(min(offset, size) < 0 or offset + size > length for _, offset, size in buffers):
            raise ValueError("a part of a message lies outside of it")
        wanted = self._is_wanted(batch, len(buffers)) if kind == BATCH else [True] * len(buffers)
        chosen = [n for n, (_, _, size) in enumerate(buffers) if wanted[n] and size > 0]
        sizes = [self._unpacked_size(first + buffers[n][1], buffers[n][2], codec) for n in chosen]
        taken = sum(buffers[n][2] for n in chosen)
        most = max(taken, sum(sizes))
        if kind == DICTIONARY:
            self._dictionaries += most
            most = self._dictionaries
        if most <= MEMORY_BYTES and length - taken <= SPARE_BYTES:
            return self._at(first, length)
        if most <= MEMORY_BYTES:
            sink: Any = io.BytesIO()
            for n in chosen:
                place, offset, size = buffers[n]
                about.move(place, sink.tell(), size)
                sink.write(self._at(first + offset, size).ljust(-(-size // 64) * 64, b"\0"))
        else:
            sink = temporary_file()
            for n, unpacked in zip(chosen, sizes, strict=True):
                place, offset, size = buffers[n]
                about.move(place, sink.tell(), unpacked + (8 if codec else 0))
                pieces = self._unpacked(first + offset, size, codec, unpacked)
                write_unpacked(self._path, pieces, sink)
                sink.write(b"\0" * (-sink.tell() % 64))
        unused = set(range(len(buffers))) - set(chosen)
        for n in unused:
            about.move(buffers[n][0], 0, 0)
        total = sink.tell()
        about.set_number(3, total)
        if isinstance(sink, io.BytesIO):
            return sink.getbuffer()
        sink.flush()
        with sink:
            return (
                memoryview(mmap.mmap(sink.fileno(), total, prot=mmap.PROT_READ)) if total else b""
            )

    def _unpacked_size(self, place: int, size: int, codec: "Table | None") -> int:
        """Bytes of a buffer, unpacked."""
        if codec is None:
            return size
        unpacked = int.from_bytes(self._at(place, 8), "little", signed=True)
        return size - 8 if unpacked == -1 else max(0, unpacked)

    def _unpacked(
        self, place: int, size: int, codec: "Table | None", unpacked: int
    ) -> Iterator[bytes]:
        """The buffer in pieces, unpacked; where others are packed, with the mark of one that is not."""
        end = place + size
        if codec is not None:
            yield b"\xff" * 8
            packed = self._at(place, 8) != b"\xff" * 8
            place += 8
            if packed:
                yield from self._decompressed(place, CODECS[codec.number(0, "b")], unpacked)
                return
        while place < end:
            piece = self._at(place, min(1 << 20, end - place))
            if not piece:
                raise ValueError("it ends within a message")
            place += len(piece)
            yield piece

    def _decompressed(self, place: int, codec: str, size: int) -> Iterator[bytes]:
        with pa.OSFile(f"/proc/self/fd/{self._stream.fileno()}") as packed:
            packed.seek(place)
            stream = pa.CompressedInputStream(packed, codec)
            while size:
                piece = stream.read(min(1 << 20, size))
                if not piece:
                    raise ValueError("a packed part of it is damaged")
                size -= len(piece)
                yield piece

    def _is_wanted(self, batch: "Table", count: int) -> list[bool]:
        """For each buffer whether its column is; all are where the file counts them in another way."""
        if self._schema is None:
            return [False] * count
        variadic = batch.numbers(4)
        wanted: list[bool] = []
        for number, field in enumerate(self._schema):
            buffers = _buffers_of(field.type, variadic)
            wanted += [number in self._wanted] * min(buffers, count + 1)
        return wanted if len(wanted) == count else [True] * count


class Table:
    """A table of a flatbuffer: `data` is the whole message, which may be changed in place."""

    def __init__(self, data: bytearray, place: int) -> None:
        self.data, self._place = data, place
        self._fields = place - self._read("i", place)

    @classmethod
    def root(cls, data: bytes) -> "Table":
        (place,) = struct.unpack_from("<I", data)
        return cls(bytearray(data), place)

    def number(self, field: int, form: str) -> int:
        """A number, 0 where it is not there."""
        place = self._find(field)
        return self._read(form, place) if place else 0

    def set_number(self, field: int, value: int) -> None:
        if (place := self._find(field)) is None:
            raise ValueError("a message says no length")
        struct.pack_into("<q", self.data, place, value)

    def table(self, field: int) -> "Table | None":
        place = self._find(field)
        return self._follow(place) if place else None

    def tables(self, field: int) -> Iterator["Table"]:
        for place in self._items(field, 4):
            yield self._follow(place)

    def numbers(self, field: int) -> Iterator[int]:
        """The 64-bit numbers of a list."""
        for place in self._items(field, 8):
            yield self._read("q", place)

    def text_size(self, field: int) -> int:
        """The length of a text, 0 where it is not there."""
        place = self._find(field)
        return self._read("I", place + self._read("I", place)) if place else 0

    def buffers(self) -> Iterator[tuple[int, int, int]]:
        """Of a batch: where each buffer is described, where it begins in the body, its bytes."""
        for place in self._items(2, 16):
            offset, size = struct.unpack_from("<qq", self.data, place)
            yield place, offset, size

    def move(self, place: int, offset: int, size: int) -> None:
        """Says that the buffer described there begins and ends elsewhere."""
        struct.pack_into("<qq", self.data, place, offset, size)

    def _items(self, field: int, size: int) -> Iterator[int]:
        if (place := self._find(field)) is not None:
            place += self._read("I", place)
            for number in range(self._read("I", place)):
                yield place + 4 + size * number

    def _follow(self, place: int) -> "Table":
        return Table(self.data, place + self._read("I", place))

    def _find(self, field: int) -> int | None:
        offset = 4 + 2 * field
        if offset >= self._read("H", self._fields):
            return None
        found = self._read("H", self._fields + offset)
        return self._place + found if found else None

    def _read(self, form: str, place: int) -> int:
        if place < 0:
            raise IndexError(place)
        number: int = struct.unpack_from(f"<{form}", self.data, place)[0]
        return number


def check_schema(schema: Table) -> None:
    """Raises Fault where the columns take too much: a short schema may name the same text many times."""
    total, waiting = 0, deque([(schema, 1, 2)])
    while waiting:
        table, fields, described = waiting.popleft()
        for pair in table.tables(described):
            total += 64 + pair.text_size(0) + pair.text_size(1)
            _check_total(total)
        for column in table.tables(fields):
            total += 512 + column.text_size(0)
            _check_total(total)
            waiting.append((column, 5, 6))


def _check_total(total: int) -> None:
    if total > SCHEMA_BYTES:
        what = f"has columns whose names and descriptions take over {format_bytes(SCHEMA_BYTES)}"
        raise Fault(what, "write it anew with the columns of text alone")


def _buffers_of(kind: Any, variadic: Iterable[int]) -> int:
    """How many buffers a column of that type has, with its fields."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_null(kind):
        return 0
    own: int = kind.num_buffers
    if kind in (pa.string_view(), pa.binary_view()):
        own += next(iter(variadic), 0)
    return own + sum(_buffers_of(kind.field(n).type, variadic) for n in range(kind.num_fields))
