"""Rows become tokens on disk, in bounded memory, on all cores; an interrupted tokenisation resumes.

The files grow a chunk at a time: `tokens.bin`, all sequences end to end; `offsets.bin`, where each
begins, sources at even places, targets at odd ones. If the loss counts answers in sources, there are also
`loss_mask.bin`, a byte for each token, and `source_counts.bin`, the counted source tokens of each row.
`stats.json` is replaced about once a second and says how much is safely on disk.
"""

import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from autotune.errors import DataError
from autotune.files import write_text
from trainer.data.encoder import Encoded, Encoder
from trainer.events import Tokenising
from trainer.reading.layouts import Columns
from trainer.reading.readers import count_rows, read_rows
from trainer.reading.row import Row

CHUNK_ROWS = 4096
CHUNK_CHARACTERS = 1 << 19
"""A chunk ends at either limit: a token takes about 150 bytes until it is written."""
SAVE_EVERY, TELL_EVERY = 1.0, 0.5
"""Seconds."""


class Interrupted(Exception):
    """Tokenising was asked to stop; the next call resumes there."""


@dataclass(slots=True, kw_only=True)
class StoreStats:
    """What is known about the rows that are written."""

    width: int
    """Bytes of a token."""
    rows: int = 0
    tokens: int = 0
    file: int = 0
    """The file that is being read, from 0."""
    file_rows: int = 0
    """Rows of it that are written."""
    cut_sources: int = 0
    cut_targets: int = 0
    empty_responses: int = 0
    last_only: int = 0
    """Conversations whose earlier answers the loss does not count, though it should."""
    altered: int = 0
    """Rows of which the chat template leaves out a part."""
    spelled: int = 0
    """Rows whose text spells a special token."""
    spelling: str | None = None
    """The first of those tokens."""
    has_loss_mask: bool = False
    """Whether the loss counts tokens of any source."""
    longest_source: list[int] = field(default_factory=lambda: [0, 0])
    """(row, tokens)"""
    longest_target: list[int] = field(default_factory=lambda: [0, 0])
    longest_both: list[int] = field(default_factory=lambda: [0, 0])
    largest_id: list[int] = field(default_factory=lambda: [0, 0])
    """(row, token id)"""
    seconds: float = 0.0
    digest: str = ""
    """SHA-256 of the tokens and of what is learnt, once all rows are written."""

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The stats of that folder, None if it has none."""
        try:
            return cls(**json.loads((folder / "stats.json").read_text()))
        except FileNotFoundError:
            return None

    def save(self, folder: Path) -> None:
        write_text(folder / "stats.json", json.dumps(asdict(self)))

    def progress(self, total: int | None) -> Tokenising:
        """The progress of tokenising `total` rows."""
        return Tokenising(rows=self.rows, total=total, tokens=self.tokens, seconds=self.seconds)

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        sizes = {"tokens.bin": self.width * self.tokens, "offsets.bin": 8 * (2 * self.rows + 1)}
        if self.has_loss_mask:
            sizes |= {"loss_mask.bin": self.tokens, "source_counts.bin": 4 * self.rows}
        return sizes


def tokenise(
    folder: Path,
    paths: Sequence[str],
    encoder: Encoder,
    columns: Columns,
    *,
    max_source: int,
    max_target: int,
    progress: Callable[[Tokenising], None] | None,
    should_stop: Callable[[], bool],
) -> None:
    """Writes the rows of those files that the folder lacks.

    Raises:
        Interrupted: `should_stop` said so, between two chunks.
        DataError: a file cannot be read as prompts and responses; the folder is removed.
        OSError: the folder cannot be written.
    """
    from accelerate.utils import patch_environment  # loads torch: only workers tokenise

    folder.mkdir(parents=True, exist_ok=True)
    total = count_rows(paths)
    told = saved = began = time.monotonic()
    with (
        _Writer(folder, encoder, max_source, max_target) as writer,
        # uses all cores; workers have this off, because a fork would lose the tokenizer's threads
        patch_environment(TOKENIZERS_PARALLELISM="true"),
    ):
        stats = writer.stats
        began -= stats.seconds
        chunks = _chunks(paths, columns, stats.file, stats.file_rows)
        for chunk, encoded in _encoded_ahead(chunks, encoder):
            writer.add(chunk, encoded)
            now = time.monotonic()
            stats.seconds = now - began
            stop = should_stop()
            if stop or now - saved >= SAVE_EVERY:
                writer.save()
                saved = now
            if progress is not None and now - told >= TELL_EVERY:
                progress(stats.progress(total))
                told = now
            if stop:
                raise Interrupted(f"tokenising was interrupted after {stats.rows:,} rows")
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
    """Appends chunks to the files of a folder, after the rows that its stats record."""

    def __init__(self, folder: Path, encoder: Encoder, max_source: int, max_target: int) -> None:
        self._folder = folder
        self._encoder = encoder
        self._dtype = encoder.dtype
        self._most = max_source, max_target
        self._files: dict[str, Any] = {}
        self.stats = self._kept()

    def __enter__(self) -> Self:
        if self.stats.rows == 0:
            for file in self._folder.iterdir():
                file.unlink()
            self._file("offsets.bin").write(np.zeros(1, dtype=np.int64).tobytes())
        for name, size in self.stats.sizes().items():
            self._file(name).truncate(size)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for file in self._files.values():
            file.close()
        if kind is DataError:  # the user changes the file, and the store's name with it
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
        self._file("tokens.bin").write(tokens.tobytes())
        self._file("offsets.bin").write((stats.tokens + lengths.cumsum()).tobytes())
        if loss_spans or stats.has_loss_mask:
            self._add_loss_mask(loss_spans, source_counts, place)
        self._note_longest(lengths)
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
        if not stats.has_loss_mask:  # the rows before have none: a hole in the file reads as zeros
            stats.has_loss_mask = True
            for name in ("loss_mask.bin", "source_counts.bin"):
                self._file(name).truncate(stats.sizes()[name])
        loss_mask = np.zeros(tokens, dtype=np.bool_)
        for first, last in spans:
            loss_mask[first:last] = True
        self._file("loss_mask.bin").write(loss_mask.tobytes())
        self._file("source_counts.bin").write(counts.tobytes())

    def _note_longest(self, lengths: Any) -> None:
        stats = self.stats
        sources, targets = lengths[::2], lengths[1::2]
        for known, sizes in (
            (stats.longest_source, sources),
            (stats.longest_target, targets),
            (stats.longest_both, sources + targets),
        ):
            row = int(sizes.argmax())
            if sizes[row] > known[1]:
                known[:] = stats.rows + row, int(sizes[row])

    def _note_largest(self, tokens: Any, lengths: Any) -> None:
        place = int(tokens.argmax())
        if tokens[place] > self.stats.largest_id[1]:
            row = int(np.searchsorted(lengths.cumsum(), place, side="right")) // 2
            self.stats.largest_id[:] = self.stats.rows + row, int(tokens[place])

    def _kept(self) -> StoreStats:
        """The stats that an interruption left; empty ones if a file is shorter than they say."""
        stats = StoreStats.read(self._folder)
        held = {file.name: file.stat().st_size for file in self._folder.iterdir()}
        if stats and all(held.get(name, 0) >= size for name, size in stats.sizes().items()):
            return stats
        return StoreStats(width=np.dtype(self._dtype).itemsize)

    def _file(self, name: str) -> Any:
        if name not in self._files:
            self._files[name] = (self._folder / name).open("ab")
        return self._files[name]
