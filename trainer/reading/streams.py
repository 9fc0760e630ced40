"""A data file's bytes: unpacked, and as UTF-8. The first bytes tell what it is, not its name."""

import codecs
import io
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from autotune.errors import DataError, first_line
from autotune.units import format_bytes
from trainer.reading.faults import SPLIT

HEAD = 4096
"""Bytes that tell what a file is."""
CODECS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\x50\x2a\x4d\x18": "zstd"}
"""Compressions by the bytes that they begin with; pzstd writes its own before each frame."""
SUFFIXES = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
KINDS = (
    ".parquet", ".pq", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".arrow", ".feather", ".ipc",
)  # fmt: skip
"""How the names of data files in a folder end, before the suffix of a compression."""
BOMS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
"""The longer one first: UTF-32's begins with UTF-16's."""
NULS: dict[tuple[bool, ...], str] = {
    (False, True, False, True): "utf-16-le", (True, False, True, False): "utf-16-be",
    (False, True, True, True): "utf-32-le", (True, True, True, False): "utf-32-be",
}  # fmt: skip
"""Encodings by the zero bytes among the first four of a text that begins with two ASCII characters."""
COPY_AGAIN = "copy the file again"
DISK_RESERVE = 1 << 30
"""Bytes that a temporary file leaves free on its disk, for others."""
CHECK_BYTES = 64 << 20
"""Bytes that are written before the disk is looked at again."""
SET_TMPDIR = "set TMPDIR to a folder with space"


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file, its compression and its encoding if it is text."""

    path: str
    """As the user gave it."""
    codec: str | None
    encoding: str
    head: bytes
    """The first bytes, unpacked."""

    @property
    def words(self) -> tuple[str, ...]:
        """Compression and encoding, where they are not the usual."""
        encoding = self.encoding.upper().removesuffix("-LE").removesuffix("-BE")
        return tuple(filter(None, (self.codec, encoding if encoding != "UTF-8" else None)))

    @property
    def plain_name(self) -> str:
        """The file's name without the suffix of its compression."""
        name = Path(self.path)
        return name.stem if name.suffix.lower() in SUFFIXES else name.name

    @property
    def beginning(self) -> bytes:
        """The first bytes of its text, as UTF-8 where they are whole characters."""
        return self.head.decode(self.encoding, "ignore").removeprefix("\ufeff").encode()

    def open(self) -> BinaryIO:
        """Its bytes, unpacked."""
        if self.codec is None:
            return Path(self.path).open("rb")
        return _buffered(self._unpacked())

    def open_text(self) -> BinaryIO:
        """Its text as UTF-8, without a byte order mark."""
        if self.encoding != "utf-8":
            raw = self._packed() if self.codec is None else self._unpacked()
            return _buffered(pa.transcoding_input_stream(raw, self.encoding, "utf-8"))
        stream = self.open()
        if self.head.startswith(codecs.BOM_UTF8):
            stream.read(len(codecs.BOM_UTF8))
        return stream

    @contextmanager
    def seekable(self) -> Iterator[str]:
        """The path of its bytes, unpacked into a temporary file if need be."""
        if self.codec is None:
            yield self.path
            return
        with temporary_file() as unpacked, self.open() as stream:
            write_unpacked(self.path, iter(lambda: stream.read(1 << 20), b""), unpacked)
            unpacked.flush()
            yield f"/proc/self/fd/{unpacked.fileno()}"

    def damaged(self, error: BaseException, place: str = "", advice: str = COPY_AGAIN) -> DataError:
        """What to say of a file, or of a place in it like `line 3`, that cannot be read."""
        is_cut = isinstance(error, UnicodeDecodeError) and "unexpected end" in error.reason
        if isinstance(error, UnicodeDecodeError) and self.encoding == "utf-8" and not is_cut:
            return self._not_utf_8()
        where = f"{self.path}, {place}" if place else self.path
        return DataError(f"{where} is damaged or cut off: {first_line(error)}", advice)

    def too_large(self, place: str, how: str) -> DataError:
        """What to say of a row that takes more than a row may, and how it does."""
        return DataError(f"{self.path}, {place} {how}", SPLIT)

    def _unpacked(self) -> Any:
        return pa.CompressedInputStream(self._packed(), self.codec)

    def _packed(self) -> Any:
        try:
            return pa.OSFile(self.path)
        except UnicodeEncodeError as error:  # Arrow opens no such name
            raise DataError(f"the name of {self.path} is not UTF-8", "rename it") from error

    def _not_utf_8(self) -> DataError:
        """Where the first byte is that is not UTF-8, and how to convert the file; reads it again."""
        place, around, bad = self._first_bad_byte()
        name = Path(self.plain_name)
        new = shlex.quote(f"{name.stem}.utf8{name.suffix}")
        old, convert = shlex.quote(self.path), f"iconv -f {_guess(around)} -t UTF-8"
        command = f"{self.codec} -dc {old} | {convert}" if self.codec else f"{convert} {old}"
        what = f"{self.path} is not UTF-8: byte 0x{bad:02X} at {place:,}"
        return DataError(what, f"if it is {_guess(around)}, convert it: {command} > {new}")

    def _first_bad_byte(self) -> tuple[int, bytes, int]:
        """Where it is, the bytes around it, and the byte."""
        decoder, passed = codecs.getincrementaldecoder("utf-8")(), 0
        with self.open() as stream:
            while piece := stream.read(1 << 20):
                try:
                    decoder.decode(piece)
                except UnicodeDecodeError as error:
                    text, first = error.object, error.start
                    around = text[max(0, first - 64) : first + HEAD]
                    return passed + len(piece) - len(text) + first, around, text[first]
                passed += len(piece)
        raise AssertionError(f"{self.path} has changed: it is UTF-8 now")


Record = dict[str, Any] | DataError
"""A record; or what is wrong with one, where others follow."""


@dataclass(frozen=True, slots=True)
class Table:
    """The records of a file."""

    kind: str
    """What the file is, for people: `CSV`."""
    columns: Sequence[str] | None
    """None where each record has its own, as in JSON."""
    records: Iterator[Record]
    """After the skipped ones. Raises DataError, Fault and OSError."""


def inspect(path: str) -> DataFile:
    """The file's compression and encoding.

    Raises:
        DataError: it is cut off, or its name says another compression than its bytes.
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as stream:
        head = stream.read(HEAD)
    codec = next((codec for magic, codec in CODECS.items() if head.startswith(magic)), None)
    promised = SUFFIXES.get(Path(path).suffix.lower())
    if promised and codec != promised:
        raise DataError(
            f"{path} is not {promised}: it begins with {head[:4]!r}",
            f"rename it without {Path(path).suffix} if it is not packed, or copy it again",
        )
    if codec is not None:
        file = DataFile(path, codec, "utf-8", b"")
        try:
            with file.open() as stream:
                head = stream.read(HEAD)
        except OSError as error:
            raise file.damaged(error) from error
    return DataFile(path, codec, _encoding(head), head)


def temporary_file() -> BinaryIO:
    """A file without a name, which is gone with its last user, even a killed one; not in /tmp, which may be memory."""
    folder = _temporary_folder()
    try:
        return cast(BinaryIO, tempfile.TemporaryFile(dir=folder))
    except OSError as error:
        raise DataError(f"cannot write into {folder}: {error.strerror}", SET_TMPDIR) from error


def write_unpacked(path: str, pieces: Iterable[bytes], temporary: BinaryIO) -> None:
    """Appends what `path` unpacks to; raises DataError before it fills the disk, for others write there too."""
    folder = _temporary_folder()
    spare = written = 0
    try:
        for piece in pieces:
            if len(piece) > spare:
                spare = min(shutil.disk_usage(folder).free - DISK_RESERVE, CHECK_BYTES)
            if len(piece) > spare:
                what = (
                    f"{path} unpacks to over {format_bytes(written)}, and {folder} is nearly full"
                )
                raise DataError(what, SET_TMPDIR)
            temporary.write(piece)
            spare -= len(piece)
            written += len(piece)
    except OSError as error:
        if error.strerror is None:  # of the stream
            raise
        what = f"cannot unpack {path} into {folder}: {error.strerror}"
        raise DataError(what, SET_TMPDIR) from error


def _temporary_folder() -> str:
    return os.environ.get("TMPDIR", "/var/tmp")


def _encoding(head: bytes) -> str:
    for mark, encoding in BOMS:
        if head.startswith(mark):
            return encoding
    return NULS.get(tuple(byte == 0 for byte in head[:4]), "utf-8")


def _guess(text: bytes) -> str:
    """The encoding that the bytes may have. In Chinese text bytes above 127 come in pairs."""
    high = [byte > 127 for byte in text]
    alone = sum(
        here and not before and not after
        for before, here, after in zip([False, *high], high, [*high[1:], False], strict=False)
    )
    return "GB18030" if alone * 4 < sum(high) else "CP1252"


def _buffered(raw: Any) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(raw, 1 << 16))
