"""Rows become tokens on disk, in bounded memory, on all cores, and after an interruption from there on.

A folder of four files grows a chunk at a time: `tokens.bin`, every sequence end to end; `offsets.bin`,
where each begins, sources at even places and targets at odd ones; and only where a source holds
answers that the loss counts, `learnt.bin`, a byte for each token that says whether it is one, and
`extra.bin`, how many there are in each row. `stats.json` is replaced about once a second, by what is
then safe on disk: a killed process loses no more. Names and locks are `store`'s business.
"""

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from trainer.data.encoder import Encoded, Encoder
from trainer.data.readers import Row, count_rows, read_rows

CHUNK_ROWS = 4096
CHUNK_CHARACTERS = 1 << 19
"""A chunk ends with either: a token takes about 150 bytes until it is written."""
SAVE_EVERY = 1.0
"""Seconds."""
TELL_EVERY = 0.5
"""Seconds."""


@dataclass(frozen=True, slots=True)
class TokenizationProgress:
    """How far a tokenising has come, its earlier parts included."""

    rows: int
    total: int | None
    """None where only reading on can tell."""
    tokens: int
    seconds: float


class Interrupted(Exception):
    """It was asked to stop; what was done is kept, and the next opening goes on from there."""


@dataclass(slots=True, kw_only=True)
class StoreStats:
    """What is known of the rows that are written."""

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
    """Conversations of which the loss should count earlier answers, and does not."""
    learns_earlier: bool = False
    """Whether the loss counts tokens of any source."""
    longest_source: list[int] = field(default_factory=lambda: [0, 0])
    """(row, tokens)"""
    longest_target: list[int] = field(default_factory=lambda: [0, 0])
    longest_both: list[int] = field(default_factory=lambda: [0, 0])
    seconds: float = 0.0

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Those of that folder, None where it has none."""
        try:
            return cls(**json.loads((folder / "facts.json").read_text()))
        except FileNotFoundError:
            return None

    def save(self, folder: Path) -> None:
        """Replaces the folder's, once it is on the disk itself."""
        temporary = folder / ".facts.json"
        with temporary.open("w") as file:
            json.dump(asdict(self), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / "facts.json")

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        sizes = {"tokens.bin": self.width * self.tokens, "offsets.bin": 8 * (2 * self.rows + 1)}
        if self.learns_earlier:
            sizes |= {"learnt.bin": self.tokens, "extra.bin": 4 * self.rows}
        return sizes


def tokenise(
    folder: Path,
    paths: Sequence[str],
    encoder: Encoder,
    *,
    max_source: int,
    max_target: int,
    progress: Callable[[TokenizationProgress], None] | None,
    should_stop: Callable[[], bool],
) -> None:
    """Writes the rows of those files there, or those that the folder still lacks.

    Raises:
        Interrupted: `should_stop` said so, between two chunks.
        DataError: a file cannot be read as prompts and responses.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = count_rows(paths)
    told = saved = began = time.monotonic()
    with ExitStack() as stack:
        writer = stack.enter_context(_Writer(folder, encoder, max_source, max_target))
        stats = writer.stats
        before = stats.seconds
        stack.enter_context(_all_cores())
        chunks = _chunks(paths, stats.file, stats.file_rows)
        for chunk, encoded in _encoded_ahead(chunks, encoder):
            writer.add(chunk, encoded)
            now = time.monotonic()
            stats.seconds = before + now - began
            stop = should_stop()
            if stop or now - saved >= SAVE_EVERY:
                writer.save()
                saved = now
            if progress is not None and now - told >= TELL_EVERY:
                progress(TokenizationProgress(stats.rows, total, stats.tokens, stats.seconds))
                told = now
            if stop:
                raise Interrupted(f"tokenising was interrupted after {stats.rows:,} rows")
        writer.save()


@dataclass(frozen=True, slots=True)
class _Chunk:
    file: int
    rows: list[Row]


def _chunks(paths: Sequence[str], first: int, skip: int) -> Iterator[_Chunk]:
    for number, path in itertools.islice(enumerate(paths), first, None):
        rows: list[Row] = []
        characters = 0
        for row in read_rows(path, skip=skip if number == first else 0):
            rows.append(row)
            characters += len(row.prompt) + len(row.response)
            if len(rows) == CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
                yield _Chunk(number, rows)
                rows, characters = [], 0
        if rows:
            yield _Chunk(number, rows)


def _encoded_ahead(
    chunks: Iterator[_Chunk], encoder: Encoder
) -> Iterator[tuple[_Chunk, list[Encoded]]]:
    """Each chunk and its tokens, while the next is read and the one before is written.

    The tokenizer lets go of the interpreter while it works, and shares its work out to all cores.
    """
    with ThreadPoolExecutor(1) as pool:
        pending: tuple[_Chunk, Future[list[Encoded]]] | None = None
        for chunk in chunks:
            following = chunk, pool.submit(encoder.encode, chunk.rows)
            if pending is not None:
                yield pending[0], pending[1].result()
            pending = following
        if pending is not None:
            yield pending[0], pending[1].result()


@contextmanager
def _all_cores() -> Iterator[None]:
    """The tokenizer's threads are switched off for workers, since a fork would lose them: here on."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


class _Writer:
    """Appends chunks to the files of a folder, after what its facts say is there."""

    def __init__(self, folder: Path, encoder: Encoder, max_source: int, max_target: int) -> None:
        self._folder = folder
        self._codec = encoder
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

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, chunk: _Chunk, encoded: list[Encoded]) -> None:
        stats, encoder = self.stats, self._codec
        sequences: list[list[int]] = []
        learnt: list[tuple[int, int]] = []  # of this chunk's tokens
        extra = np.zeros(len(encoded), dtype=np.int32)
        place = 0
        for number, each in enumerate(encoded):
            source = encoder.fit_source(each.source, self._most[0])
            target = encoder.fit_target(each.target, self._most[1])
            for first, last in each.learnt_of_last(len(source)) if each.learnt else ():
                learnt.append((place + first, place + last))
                extra[number] += last - first
            sequences += (source, target)
            place += len(source) + len(target)
            stats.cut_sources += len(each.source) > self._most[0]
            stats.cut_targets += len(each.target) > self._most[1]
            stats.empty_responses += not chunk.rows[number].response
            stats.last_only += each.is_last_only
        lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
        flat = itertools.chain.from_iterable(sequences)
        self._file("tokens.bin").write(np.fromiter(flat, encoder.dtype, count=place).tobytes())
        self._file("offsets.bin").write((stats.tokens + lengths.cumsum()).tobytes())
        if learnt or stats.learns_earlier:
            self._add_learnt(learnt, extra, place)
        self._note_longest(lengths)
        stats.file_rows = len(encoded) + (stats.file_rows if chunk.file == stats.file else 0)
        stats.file = chunk.file
        stats.rows += len(encoded)
        stats.tokens += place

    def save(self) -> None:
        """Makes what was added so far survive whatever happens."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self.stats.save(self._folder)

    def _add_learnt(self, learnt: list[tuple[int, int]], extra: Any, tokens: int) -> None:
        stats = self.stats
        if not stats.learns_earlier:  # the rows before have none: a hole in the file reads as zeros
            stats.learns_earlier = True
            for name in ("learnt.bin", "extra.bin"):
                self._file(name).truncate(stats.sizes()[name])
        marks = np.zeros(tokens, dtype=np.bool_)
        for first, last in learnt:
            marks[first:last] = True
        self._file("learnt.bin").write(marks.tobytes())
        self._file("extra.bin").write(extra.tobytes())

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

    def _kept(self) -> StoreStats:
        """What an earlier part left; nothing where a file is shorter than it should be."""
        anew = StoreStats(width=np.dtype(self._codec.dtype).itemsize)
        stats = StoreStats.read(self._folder) or anew
        for name, size in stats.sizes().items():
            file = self._folder / name
            if not file.exists() or file.stat().st_size < size:
                return anew
        return stats

    def _file(self, name: str) -> Any:
        if name not in self._files:
            self._files[name] = (self._folder / name).open("ab")
        return self._files[name]
