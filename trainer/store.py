"""Tokens on disk: tokenised once, memory-mapped after that, so that host memory does not grow.

A store is a folder: `tokens.bin` holds every sequence end to end, `offsets.npy` where each begins,
sources at even places and targets at odd ones. It is named by a hash of the files' content, the
tokenizer and the settings, and appears whole or not at all.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autotune.errors import DataError, OutputError
from trainer.codec import Codec
from trainer.rows import BATCH_ROWS, Row, check_file, read_rows

VERSION = 1
"""Part of the name: a change of format or of encoding makes old stores unreachable."""


@dataclass(frozen=True, slots=True)
class TokenStore:
    """Sources and targets by row number."""

    folder: Path
    tokens: npt.NDArray[Any]
    """(tokens,) uint16 or uint32, memory-mapped."""
    offsets: npt.NDArray[np.int64]
    """(2 · rows + 1,), memory-mapped."""
    cut_sources: int
    """Rows whose source was longer than allowed."""
    cut_targets: int

    def __reduce__(self) -> tuple[Any, ...]:
        """A loader worker maps the same pages; an array that is pickled would be copied."""
        return read_store, (self.folder, self.tokens.dtype)

    def __len__(self) -> int:
        return (len(self.offsets) - 1) // 2

    def source(self, row: int) -> npt.NDArray[Any]:
        return self.tokens[self.offsets[2 * row] : self.offsets[2 * row + 1]]

    def target(self, row: int) -> npt.NDArray[Any]:
        return self.tokens[self.offsets[2 * row + 1] : self.offsets[2 * row + 2]]

    def source_lengths(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return self.offsets[2 * rows + 1] - self.offsets[2 * rows]

    def target_lengths(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return self.offsets[2 * rows + 2] - self.offsets[2 * rows + 1]

    def longest(self) -> tuple[int, int]:
        """Tokens of the longest source and of the longest target."""
        rows = np.arange(len(self))
        return int(self.source_lengths(rows).max()), int(self.target_lengths(rows).max())

    def truncation_notice(self, max_source: int, max_target: int) -> str | None:
        """A line that says how many rows were cut, None when none was."""
        if not self.cut_sources and not self.cut_targets:
            return None
        return (
            f"truncated {self.cut_sources:,} of {len(self):,} sources to {max_source} tokens and "
            f"{self.cut_targets:,} targets to {max_target}"
        )


def open_store(
    paths: Sequence[str], codec: Codec, *, max_source: int, max_target: int
) -> TokenStore:
    """The store of those files, tokenised now if it was not yet.

    Raises:
        DataError: a file cannot be read as prompts and responses.
        OutputError: the cache folder cannot be written.
    """
    folder = cache_folder() / _name(paths, codec, max_source, max_target)
    if not folder.exists():
        try:
            _write(folder, _encoded(paths, codec, max_source, max_target), codec.dtype)
        except OSError as error:
            raise OutputError(
                f"cannot write the token cache {folder.parent}: {error.strerror}; set "
                f"CHATLM_CACHE to a folder with space"
            ) from error
    return read_store(folder, np.dtype(codec.dtype))


def read_store(folder: Path, dtype: np.dtype[Any]) -> TokenStore:
    """The store in that folder."""
    facts = json.loads((folder / "facts.json").read_text())
    return TokenStore(
        folder,
        np.memmap(folder / "tokens.bin", dtype=dtype, mode="r"),
        np.load(folder / "offsets.npy", mmap_mode="r"),
        facts["cut_sources"],
        facts["cut_targets"],
    )


def cache_folder() -> Path:
    """`$CHATLM_CACHE`, or `chatlm` in the user's cache folder."""
    if own := os.environ.get("CHATLM_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatlm"


def _name(paths: Sequence[str], codec: Codec, max_source: int, max_target: int) -> str:
    digest = hashlib.sha256(f"{VERSION} {codec.identity} {max_source} {max_target}".encode())
    for path in paths:
        check_file(path)
        try:
            with Path(path).open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class _Pair:
    source: list[int]
    target: list[int]
    cut_source: bool
    cut_target: bool


def _encoded(
    paths: Sequence[str], codec: Codec, max_source: int, max_target: int
) -> Iterator[list[_Pair]]:
    """Encoded rows, a batch at a time."""
    for path in paths:
        for rows in _batched(read_rows(path)):
            yield [
                _Pair(
                    codec.fit_source(source, max_source),
                    codec.fit_target(target, max_target),
                    len(source) > max_source,
                    len(target) > max_target,
                )
                for source, target in codec.encode(rows)
            ]


def _batched(rows: Iterator[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _write(folder: Path, batches: Iterator[list[_Pair]], dtype: type) -> None:
    """Writes beside the folder, then renames: a reader sees all of it or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".writing-"))
    try:
        lengths: list[npt.NDArray[np.int64]] = []
        cut_sources = cut_targets = 0
        with (temporary / "tokens.bin").open("wb") as file:
            for pairs in batches:
                sequences = [part for pair in pairs for part in (pair.source, pair.target)]
                file.write(
                    np.concatenate([np.asarray(s, dtype=dtype) for s in sequences]).tobytes()
                )
                lengths.append(np.array([len(s) for s in sequences], dtype=np.int64))
                cut_sources += sum(pair.cut_source for pair in pairs)
                cut_targets += sum(pair.cut_target for pair in pairs)
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        np.save(temporary / "offsets.npy", offsets)
        facts = {"cut_sources": cut_sources, "cut_targets": cut_targets}
        (temporary / "facts.json").write_text(json.dumps(facts))
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():  # else another rank or run was quicker with the same content
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
