"""How many rows of a Parquet file are read at once, by the headers of its pages.

The file's summary tells too little. A page's dictionary may hold a text of 4 MiB once that each row takes
whole, and a row may be a list of any length. Arrow unpacks what it is asked for, whatever that takes.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from autotune.units import format_bytes
from trainer.reading.faults import ROW_BYTES, SPLIT, VALUE_BYTES, Fault, shown

BATCH_ROWS = 128
"""More rows at once are not read faster."""
BATCH_BYTES = 96 << 20
"""Of a batch, were each of its rows as large as its pages allow."""
PAGE_BYTES = 256 << 20
"""Of the largest pages of the columns together; DuckDB writes pages of 100 MiB."""
LIST_VALUES = 32 << 20
"""Of a list column in a row group: the place of each row is held in memory."""
FOOTER_BYTES = 16 << 20
"""Of the file's summary, which takes 12 times as much in memory (pyarrow 26, 60,000 row groups)."""
SMALLER = (
    "write it anew, like pq.write_table(table, path, row_group_size=1000, use_dictionary=False)"
)

WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 5: "lz4_raw", 6: "zstd", 7: "lz4_raw"}
STREAMED = ("gzip", "brotli", "zstd")
"""Compressions that unpack the beginning of a page alone."""
Header = dict[int, Any]
"""The numbers of a Thrift struct, by the numbers of its fields."""
HEADER_BYTES = 16 << 20
"""Of a page's header, as Arrow has it; it may hold the page's least and greatest text."""
ROW_GROUPS = 4
DICTIONARY_PAGE = 2
PREFIXES = 7
"""An encoding: a value may begin as the one before does, so each may be as long as the page."""
DICTIONARIES = (2, 8)
BIT_PACKED = 4


class Page:
    """What a page's header says; raises ValueError where it says no such thing."""

    def __init__(self, header: Header, place: int) -> None:
        self.place = place
        """Where the page begins in the file."""
        self.packed, self.size = _number(header, 3), _number(header, 2)
        """Bytes in the file, and unpacked."""
        self.is_dictionary = _number(header, 1) == DICTIONARY_PAGE
        first, second = header.get(5), header.get(8)  # of a data page, by its version
        about = first if isinstance(first, dict) else second if isinstance(second, dict) else {}
        self.values = _number(about, 1) if about else 0
        self.encoding = about.get(2 if about is first else 4)
        self.levels_encoding = about.get(4) if about is first else None
        self.levels_size = _number(about, 6) if about is second else None
        """Of the levels of the second version, which are not packed."""


class Leaf:
    """The pages of a column in a row group, and how much rows may take of them."""

    def __init__(self, column: Any, chunk: Header, stream: BinaryIO) -> None:
        self.path: str = column.path
        self.levels: int = column.max_repetition_level
        """How deep its lists are; 0 where each row has one value."""
        self.codec = CODECS.get(_number(chunk, 4))
        pages = list(_pages(stream, chunk))
        self.dictionary = next((page for page in pages if page.is_dictionary), None)
        self.pages = [page for page in pages if not page.is_dictionary]
        self.largest = max((page.size for page in self.pages), default=0)
        self.values = sum(page.values for page in self.pages)
        self.longest = self._longest(column)
        """Bytes that each value may take, whatever its page has for it."""
        self.starts: Any = None
        """Where in a list column rows begin, and the last one ends, once that is known."""

    def _longest(self, column: Any) -> int:
        if column.physical_type != "BYTE_ARRAY":
            return WIDTHS.get(column.physical_type) or max(1, column.length)
        encodings = {page.encoding for page in self.pages}
        named = self.dictionary.size if self.dictionary and encodings & {*DICTIONARIES} else 0
        return max(named, self.largest if PREFIXES in encodings else 0)

    def values_of(self, rows: int) -> int:
        """The most values that so many rows in turn have."""
        if self.starts is None:
            return self.values if self.levels else rows
        rows = min(rows, len(self.starts) - 1)
        return int((self.starts[rows:] - self.starts[: len(self.starts) - rows]).max())

    def bytes_of(self, rows: int) -> int:
        """The most bytes that so many rows in turn take, beside those of two pages."""
        values = self.values_of(rows)
        sizes = np.cumsum([0] + [page.size for page in self.pages])
        firsts = np.cumsum([0] + [page.values for page in self.pages])[:-1]
        pages = sizes[np.searchsorted(firsts, firsts + values)] - sizes[:-1]
        beyond = max(0, int(pages.max(initial=0)) - 2 * self.largest)
        return values * (VALUE_BYTES + self.longest) + beyond

    def read_dictionary(self, stream: BinaryIO) -> None:
        """Finds the longest text of its dictionary."""
        if self.dictionary and self.longest == self.dictionary.size:
            self.longest = _longest_text(_unpacked(stream, self.dictionary, self.codec))

    def read_levels(self, stream: BinaryIO) -> None:
        """Finds where rows begin, if they are lists; raises Fault."""
        if self.levels:
            if self.values > LIST_VALUES:
                what = f"has {self.values:,} values of {shown(self.path)} in a row group"
                raise Fault(f"{what}; the limit is {LIST_VALUES:,}", SMALLER)
            self.starts = _row_starts(stream, self)


def row_groups(stream: BinaryIO) -> Iterator[list[Header]]:
    """What the file's summary says of the columns of each row group.

    Not by pyarrow, whose ColumnChunkMetaData ends the process where a part is damaged that no one needs
    (pyarrow 26: "Definition level histogram size mismatch").
    """
    stream.seek(-8, 2)
    size = int.from_bytes(stream.read(4), "little")
    stream.seek(-8 - size, 2)
    summary = Compact(stream.read(size))
    try:
        for number, kind in summary.fields():
            if number != ROW_GROUPS:
                summary.value(kind)
                continue
            for group in summary.items():
                yield [column[3] for column in group[1]]
            return
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError("its summary is damaged") from error


def check_footer(stream: BinaryIO) -> None:
    """Raises Fault where the file's summary takes more than any file of text needs."""
    stream.seek(-8, 2)
    size = int.from_bytes(stream.read(4), "little")
    if FOOTER_BYTES < size < stream.tell():
        what = f"has a summary of {format_bytes(size)}; the limit is {format_bytes(FOOTER_BYTES)}"
        raise Fault(what, "write it anew with fewer columns, or fewer and larger row groups")


def rows_at_once(
    stream: BinaryIO, schema: Any, chunks: Sequence[Header], group: int, names: Sequence[str]
) -> int:
    """How many rows of the group, of the named columns, are read at once.

    Raises:
        Fault: a single one may take too much.
        ValueError: a page's header is damaged.
    """
    within = tuple(f"{name}." for name in names)
    leaves = [
        Leaf(column, chunk, stream)
        for column, chunk in zip(map(schema.column, range(len(schema))), chunks, strict=True)
        if column.path.startswith(within) or column.path in names
    ]
    _check_pages(leaves, group)
    for look_closer in (Leaf.read_dictionary, Leaf.read_levels):
        if _rows_that_fit(leaves) >= BATCH_ROWS // 2:
            break
        for leaf in leaves:
            look_closer(leaf, stream)
    rows = _rows_that_fit(leaves)
    for leaf in leaves:
        if rows == 1 and leaf.levels and leaf.bytes_of(1) > BATCH_BYTES:
            row = f"rows of up to {format_bytes(leaf.bytes_of(1))}"
            raise _too_large(leaf, group, row, BATCH_BYTES)
    return rows


def _rows_that_fit(leaves: Sequence[Leaf]) -> int:
    rows = BATCH_ROWS
    while rows > 1 and sum(leaf.bytes_of(rows) for leaf in leaves) > BATCH_BYTES:
        rows //= 2
    return rows


def _check_pages(leaves: Sequence[Leaf], group: int) -> None:
    """Raises Fault where the pages take too much."""
    together = 0
    for leaf in leaves:
        for page in leaf.pages:
            # then one of its values is larger than a row
            if page.size > (page.values + 1) * ROW_BYTES:
                row = f"a row of {format_bytes(page.size)}"
                raise _too_large(leaf, group, row, ROW_BYTES, SPLIT)
        together += leaf.largest + (leaf.dictionary.size if leaf.dictionary else 0)
        if together > PAGE_BYTES:
            pages = f"pages of {format_bytes(together)}"
            raise _too_large(leaf, group, pages, PAGE_BYTES)


def _too_large(leaf: Leaf, group: int, what: str, limit: int, hint: str = SMALLER) -> Fault:
    where = f"has in row group {group + 1} {what} in {shown(leaf.path)}"
    return Fault(f"{where}; the limit is {format_bytes(limit)}", hint)


def _pages(stream: BinaryIO, chunk: Header) -> Iterator[Page]:
    """The pages of a column chunk, as Arrow looks for them."""
    place, first = _number(chunk, 9), chunk.get(11)  # of the dictionary
    if isinstance(first, int) and 0 < first < place:
        place = first
    # old writers leave the dictionary's header out
    end = min(place + _number(chunk, 7) + 100, stream.seek(0, 2))
    values = 0
    while values < _number(chunk, 5) and place < end:
        page = Page(*_header(stream, place))
        if page.place + page.packed > end:
            raise ValueError(f"it ends within a page of {format_bytes(page.packed)}")
        yield page
        values += page.values
        place = page.place + page.packed


def _number(header: Header, field: int) -> int:
    number = header.get(field)
    if not isinstance(number, int) or number < 0:
        raise ValueError("its description is damaged")
    return number


class Compact:
    """Thrift's compact protocol, without its texts; raises IndexError where the bytes end too soon."""

    def __init__(self, data: bytes) -> None:
        self._data, self.place = data, 0

    def struct(self) -> Header:
        """A struct as numbers, structs and lists, by the numbers of its fields."""
        found: Header = {}
        for number, kind in self.fields():
            found[number] = kind == 1 if kind < 3 else self.value(kind)
        return found

    def fields(self) -> Iterator[tuple[int, int]]:
        """The number and the kind of each field; the caller reads its value."""
        number = 0
        while True:
            head = self._data[self.place]
            self.place += 1
            if head == 0:
                return
            number = number + (head >> 4) if head >> 4 else self.signed()
            yield number, head & 15

    def value(self, kind: int) -> Any:
        if kind in (4, 5, 6):
            return self.signed()
        if kind == 8:
            size = self.unsigned()
            self.place += size
            return None
        if kind == 12:
            return self.struct()
        if kind in (9, 10):
            return list(self.items())
        if kind not in (1, 2, 3, 7):
            raise ValueError(f"its description has a field of kind {kind}")
        self.place += 8 if kind == 7 else 1
        return None

    def items(self) -> Iterator[Any]:
        head = self._data[self.place]
        self.place += 1
        for _ in range(head >> 4 if head >> 4 < 15 else self.unsigned()):
            yield self.value(head & 15)

    def unsigned(self) -> int:
        byte = self._data[self.place]
        self.place += 1
        number, shift = byte & 127, 7
        while byte > 127:
            byte = self._data[self.place]
            self.place += 1
            number |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise ValueError("its description has a number that does not end")
        return number

    def signed(self) -> int:
        number = self.unsigned()
        return (number >> 1) ^ -(number & 1)


def _header(stream: BinaryIO, place: int) -> tuple[Header, int]:
    """The header there, of any length, and where it ends."""
    size = 256
    while True:
        stream.seek(place)
        compact = Compact(data := stream.read(size))
        try:
            header = compact.struct()
        except IndexError as error:
            if len(data) < size or size > HEADER_BYTES:
                raise ValueError("the description of a page is cut off") from error
            size *= 8
        else:
            return header, place + compact.place


def _unpacked(stream: BinaryIO, page: Page, codec: str | None, *, first: bool = False) -> Any:
    """The page's bytes; only the levels that it begins with where `first` and the compression allow."""
    stream.seek(page.place)
    packed = stream.read(page.packed)
    if codec is None:
        return packed
    if first and codec in STREAMED:
        with pa.CompressedInputStream(pa.BufferReader(packed), codec) as unpacked:
            head = unpacked.read(4)
            return head + unpacked.read(min(int.from_bytes(head, "little"), page.size))
    if codec == "lz4_raw" and int.from_bytes(packed[:4], "big") == page.size:
        packed = packed[8:]  # Hadoop writes both sizes before it
    return pa.decompress(packed, page.size, codec, asbytes=True)


def _longest_text(page: bytes) -> int:
    """The length of the longest text in a dictionary."""
    place = longest = 0
    read, end = struct.Struct("<I").unpack_from, len(page) - 4
    while place <= end:
        (size,) = read(page, place)
        if size > longest:
            longest = size
        place += 4 + size
    return min(longest, len(page))


def _row_starts(stream: BinaryIO, leaf: Leaf) -> Any:
    """The numbers of the values that begin a row, and of the end."""
    width = leaf.levels.bit_length()
    starts, passed = [], 0
    for page in leaf.pages:
        if page.levels_size is not None:
            stream.seek(page.place)
            levels = stream.read(page.levels_size)
        else:
            unpacked = _unpacked(stream, page, leaf.codec, first=True)
            if page.levels_encoding == BIT_PACKED:
                raise ValueError("its lists are written in an encoding of 2013")
            levels = unpacked[4 : 4 + int.from_bytes(unpacked[:4], "little")]
        try:
            starts += [zeros + passed for zeros in _zeros(levels, width, page.values)]
        except IndexError as error:
            raise ValueError("its lists are cut off") from error
        passed += page.values
    return np.concatenate([*starts, np.array([passed], np.int32)])


def _zeros(levels: bytes, width: int, count: int) -> Iterator[Any]:
    """The places of the zeros among `count` levels, which are runs of one level or packed bits."""
    runs, passed = Compact(levels), 0
    while passed < count:
        run = runs.unsigned()
        first = runs.place
        if run & 1:
            runs.place += (run >> 1) * width
            packed = np.frombuffer(levels[first : runs.place], np.uint8)
            many = len(packed) * 8 // width
            bits = np.unpackbits(packed, bitorder="little")[: many * width].reshape(many, width)
            zeros = np.flatnonzero((bits == 0).all(axis=1)[: count - passed])
            yield zeros.astype(np.int32) + passed
        else:
            many = run >> 1
            runs.place += (width + 7) // 8
            if not any(levels[first : runs.place]):
                yield np.arange(passed, min(passed + many, count), dtype=np.int32)
        passed += many
