"""Kinds of cases for `bench.fuzz` whose readers break a promise, each another one."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from autotune.errors import DataError
from bench.fuzz.case import Case, Make, Place

Read = Callable[[Place], object]


def kind(read: Read) -> Callable[[Path], Make]:
    """A kind whose cases are a file in the current folder, read by that function."""

    def make(place: Place, draw: Random) -> Case:
        (place.work / "file").write_text(str(draw.random()))
        return Case([lambda: read(place)], kept=[place.work])

    return lambda folder: make


class Unclean(DataError):
    """An error whose text is not cleaned."""

    def __str__(self) -> str:
        return self.what


def _raises(error: BaseException) -> Read:
    def read(place: Place) -> None:
        raise error

    return read


def _reads_every_third_other(place: Place) -> None:
    number = int((place.work / "file").read_text()[-1])
    if number % 3 == 0:
        raise DataError("it is damaged", "copy it again")
    if number % 3 == 1:
        raise ValueError("invalid literal")


def _removes(place: Place) -> None:
    (place.outside / "canary.txt").unlink()


def _rewrites(place: Place) -> None:
    (place.outside / "canary.txt").write_text("CANARY\n")


def _follows_a_link(place: Place) -> None:
    (place.root / "link").symlink_to(place.outside / "folder")
    (place.root / "link" / "checkpoint-4").unlink()


def _adds(place: Place) -> None:
    (place.work / "new").touch()


def _leaves_a_temporary_file(place: Place) -> None:
    tempfile.mkstemp()


def _leaves_a_half_written_file(place: Place) -> None:
    (place.root / ".run.json.1.tmp").touch()


def _leaves_a_process(place: Place) -> None:
    subprocess.Popen([sys.executable, "-c", "pass"])


def _takes_memory(place: Place) -> None:
    bytes(3 << 30)


def _waits_for_a_pipe(place: Place) -> None:
    os.mkfifo(place.root / "pipe")
    (place.root / "pipe").read_bytes()


reads = kind(lambda place: (place.work / "file").read_text())
mixed = kind(_reads_every_third_other)
raises = kind(_raises(ValueError("invalid literal \x1b[2J")))
recurses = kind(_raises(RecursionError("maximum recursion depth exceeded")))
says_escape = kind(_raises(Unclean("a\u202eb")))
says_too_much = kind(_raises(DataError("x" * 3000)))
prints_escape = kind(lambda place: "rows.csv: CSV\n\x1b]0;title\x07")
prints_emoji = kind(lambda place: "👩‍👩‍👧 and می‌خواهم\n")
hangs = kind(lambda place: time.sleep(600))
waits = kind(_waits_for_a_pipe)
aborts = kind(lambda place: os.abort())
exits = kind(lambda place: os._exit(0))
takes_memory = kind(_takes_memory)
removes = kind(_removes)
rewrites = kind(_rewrites)
follows_a_link = kind(_follows_a_link)
adds = kind(_adds)
leaves_a_temporary_file = kind(_leaves_a_temporary_file)
leaves_a_half_written_file = kind(_leaves_a_half_written_file)
leaves_a_process = kind(_leaves_a_process)


def other_tokens(folder: Path) -> Make:
    """Token stores that are opened with one token changed."""
    import numpy as np

    from bench.fuzz import token_stores

    honest = token_stores.opened_store

    def opened(*arguments: Any, **options: Any) -> Any:
        store = honest(*arguments, **options)
        tokens = np.array(store.tokens)
        tokens[7] += 1
        return type(store)(
            store.folder, store.stats, tokens, store.offsets, store.masks, store.source_counts
        )

    damaged = token_stores.prepare(folder)
    token_stores.opened_store = opened

    def make(place: Place, draw: Random) -> Case:
        case = damaged(place, draw)
        os.environ["CHATLM_CACHE"] = str(place.work / "fresh")
        return case

    return make


def crashes_at_making(folder: Path) -> Make:
    raise OSError("no space left")
