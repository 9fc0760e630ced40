"""Rows become tokens on disk, in bounded memory, on all cores; an interrupted tokenisation resumes.

The files grow a chunk at a time: `tokens.bin`, all sequences end to end; `offsets.bin`, where each
begins, sources at even places, targets at odd ones. If the loss counts answers in sources, there are also
`loss_mask.bin`, a byte for each token, and `source_counts.bin`, the counted source tokens of each row.
`stats.json` is replaced about once a second and says how much is safely on disk.
"""

import hashlib
import itertools
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from autotune.errors import DataError
from autotune.files import SAFELY
from trainer.data.cache_folder import remove
from trainer.data.contents import FileContents
from trainer.data.encoder import Encoded, Encoder
from trainer.data.store_stats import NAME, StoreStats
from trainer.events import Tokenising
from trainer.reading.layouts import Columns
from trainer.reading.readers import count_rows, read_rows
from trainer.reading.row import Row

CHUNK_ROWS = 4096
CHUNK_CHARACTERS = 1 << 19
"""A chunk ends at either limit: a token takes about 150 bytes until it is written."""
PIECE = 1 << 20
"""Bytes that are written at once where a file gets zeros."""
SAVE_EVERY, TELL_EVERY = 1.0, 0.5
"""Seconds."""


class Interrupted(Exception):
    """Tokenising was asked to stop; the next call resumes there."""


def tokenise(
    folder: Path,
    stats: StoreStats,
    files: FileContents,
    encoder: Encoder,
    columns: Columns,
    *,
    max_source: int,
    max_target: int,
    progress: Callable[[Tokenising], None] | None,
    should_stop: Callable[[], bool],
) -> None:
    """Writes the rows of those files that the folder lacks; `stats` say which it has.

    Raises:
        Interrupted: `should_stop` said so, between two chunks.
        DataError: a file cannot be read as prompts and responses, or changes meanwhile; the folder is removed.
        OSError: the folder cannot be written.
    """
    from accelerate.utils import patch_environment  # loads torch: only workers tokenise

    paths = files.paths
    total = count_rows(paths)
    told = saved = began = time.monotonic()
    with (
        _Writer(folder, stats, encoder, max_source, max_target) as writer,
        # uses all cores; workers have this off, because a fork would lose the tokenizer's threads
        patch_environment(TOKENIZERS_PARALLELISM="true"),
    ):
        began -= stats.seconds
        chunks = _chunks(paths, columns, stats.file, stats.file_rows)
        try:
            for chunk, encoded in _encoded_ahead(chunks, encoder):
                writer.add(chunk, encoded)
                now = time.monotonic()
                stats.seconds = now - began
                stop = should_stop()
                if stop or now - saved >= SAVE_EVERY:
                    files.check_unchanged()  # what is saved is kept
                    writer.save()
                    saved = now
                if progress is not None and now - told >= TELL_EVERY:
                    progress(stats.progress(total))
                    told = now
                if stop:
                    raise Interrupted(f"tokenising was interrupted after {stats.rows:,} rows")
        except Exception:
            files.check_unchanged()  # a reader may say anything of a file that changes
            raise
        files.check_unchanged()
        writer.save()
        stats.digest = content_digest(folder, stats)
        stats.save(folder)


def content_digest(folder: Path, stats: StoreStats) -> str:
    """SHA-256 of the store's files: the same for the same learnt tokens, whatever file they came from."""
    digest = hashlib.sha256()
    for name in stats.sizes():
        with (folder / name).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


Chunk = tuple[int, list[Row]]
"""The number of a file, and rows of it."""


def _chunks(paths: Sequence[str], columns: Columns, first: int, skip: int) -> Iterator[Chunk]:
    for number, path in itertools.islice(enumerate(paths), first, None):
        rows: list[Row] = []
        characters = 0
        for row in read_rows(path, columns, skip=skip if number == first else 0):
            rows.append(row)
            characters += len(row.prompt) + len(row.response)
            if len(rows) == CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
                yield number, rows
                rows, characters = [], 0
        if rows:
            yield number, rows


def _encoded_ahead(
    chunks: Iterator[Chunk], encoder: Encoder
) -> Iterator[tuple[Chunk, list[Encoded]]]:
    """Each chunk and its tokens. A thread encodes them while others are read and written, without the GIL."""
    with ThreadPoolExecutor(1) as pool:
        submitted = ((chunk, pool.submit(encoder.encode, chunk[1])) for chunk in chunks)
        pending = next(submitted, None)
        while pending is not None:
            following = next(submitted, None)
            yield pending[0], pending[1].result()
            pending = following


class _Writer:
    """Appends chunks to the files of a folder, after the rows that the stats record."""

    def __init__(
        self, folder: Path, stats: StoreStats, encoder: Encoder, max_source: int, max_target: int
    ) -> None:
        self._folder = folder
        self._encoder = encoder
        self._dtype = encoder.dtype
        self._most = max_source, max_target
        self._files: dict[str, Any] = {}
        self.stats = stats

    def __enter__(self) -> Self:
        sizes = self.stats.sizes()
        for file in self._folder.iterdir():  # what came after the last save, or is not ours
            if self.stats.rows == 0 or file.name not in (*sizes, NAME):
                remove(file)
        if self.stats.rows == 0:
            self._append("offsets.bin", bytes(8))
        else:
            for name, size in sizes.items():
                self._file(name).truncate(size)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for file in self._files.values():
            with suppress(OSError):  # a full disk: all that counts was flushed before
                file.close()
        if kind is DataError:  # the user changes the file, and the store's name with it
            with suppress(FileNotFoundError):
                shutil.rmtree(self._folder)

    def add(self, chunk: Chunk, encoded: list[Encoded]) -> None:
        stats, encoder = self.stats, self._encoder
        file, rows = chunk
        sequences: list[list[int]] = []
        loss_spans: list[tuple[int, int]] = []  # in this chunk's tokens
        source_counts = np.zeros(len(encoded), dtype=np.int32)
        place = 0
        for number, (row, each) in enumerate(zip(rows, encoded, strict=True)):
            # a target that is cut has no end
            source, target = encoder.fit(each, max_source=self._most[0], max_target=self._most[1])
            for first, last in each.loss_spans_in_last(len(source)):
                loss_spans.append((place + first, place + last))
                source_counts[number] += last - first
            sequences += (source, target)
            place += len(source) + len(target)
            stats.cut_sources += len(source) < len(each.source)
            stats.cut_targets += len(target) < len(each.target)
            stats.empty_responses += not row.messages[-1].content and not row.messages[-1].extra
            stats.last_only += each.is_last_only
            stats.altered += each.is_altered
            stats.spelled += each.spelled is not None
            stats.spelling = stats.spelling or each.spelled
        lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
        flat = itertools.chain.from_iterable(sequences)
        tokens = np.fromiter(flat, self._dtype, count=place)
        self._append("tokens.bin", tokens.tobytes())
        self._append("offsets.bin", (stats.tokens + lengths.cumsum()).tobytes())
        if loss_spans or stats.has_loss_mask:
            self._add_loss_mask(loss_spans, source_counts, place)
        stats.note_longest(stats.rows, lengths)
        self._note_largest(tokens, lengths)
        stats.file_rows = len(encoded) + (stats.file_rows if file == stats.file else 0)
        stats.file = file
        stats.rows += len(encoded)
        stats.tokens += place

    def save(self) -> None:
        """Returns once all added rows are on the disk."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self.stats.save(self._folder)

    def _add_loss_mask(self, spans: list[tuple[int, int]], counts: Any, tokens: int) -> None:
        stats = self.stats
        if not stats.has_loss_mask:  # the rows before have none
            stats.has_loss_mask = True
            for name in ("loss_mask.bin", "source_counts.bin"):
                for piece in _zeros(stats.sizes()[name]):
                    self._append(name, piece)
        loss_mask = np.zeros(tokens, dtype=np.bool_)
        for first, last in spans:
            loss_mask[first:last] = True
        self._append("loss_mask.bin", loss_mask.tobytes())
        self._append("source_counts.bin", counts.tobytes())

    def _note_largest(self, tokens: Any, lengths: Any) -> None:
        place = int(tokens.argmax())
        if tokens[place] > self.stats.largest_id[1]:
            row = int(np.searchsorted(lengths.cumsum(), place, side="right")) // 2
            self.stats.largest_id[:] = self.stats.rows + row, int(tokens[place])

    def _append(self, name: str, content: bytes) -> None:
        self._file(name).write(content)
        checksums = self.stats.checksums
        checksums[name] = zlib.crc32(content, checksums.get(name, 0))

    def _file(self, name: str) -> Any:
        if name not in self._files:
            # for this user alone, whatever the umask
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | SAFELY
            descriptor = os.open(self._folder / name, flags, 0o600)
            self._files[name] = os.fdopen(descriptor, "ab")
            os.fchmod(descriptor, 0o600)
        return self._files[name]


def _zeros(size: int) -> Iterator[bytes]:
    """That many, a piece at a time."""
    while size:
        piece = bytes(min(size, PIECE))
        size -= len(piece)
        yield piece
