"""Tokenising resumes where it was interrupted, once for all processes, in bounded memory."""

import functools
import itertools
import json
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import DataError
from tests.support.data_files import Write, every_format, json_lines, pairs, parquet
from tests.support.processes import wait_until
from tests.support.tokenisers import tokenizer
from trainer.data import tokenization
from trainer.data.encoder import Encoded, Encoder
from trainer.data.token_store import TokenStore, open_store
from trainer.data.tokenization import Interrupted, StoreStats
from trainer.events import Tokenising
from trainer.reading.row import Row

ROWS = 1000
CHUNK = 100


@functools.cache
def encoder() -> Encoder:
    return Encoder(tokenizer(), is_causal=False)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and chunks that are small."""
    monkeypatch.setenv("CHATLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tokenization, "CHUNK_ROWS", CHUNK)
    monkeypatch.setattr(tokenization, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(tokenization, "TELL_EVERY", 0.0)
    monkeypatch.setattr("trainer.data.token_store.TELL_EVERY", 0.01)
    return tmp_path / "cache"


def opened(*paths: Path, stop_after: int | None = None, **options: Any) -> TokenStore:
    chunks = itertools.count(1)
    options = {"should_stop": lambda: next(chunks) == stop_after, **options}
    return open_store([str(p) for p in paths], encoder(), max_source=64, max_target=64, **options)


def contents(store: TokenStore) -> dict[str, bytes]:
    """All files but the statistics, and those without the time that it took."""
    files = {p.name: p.read_bytes() for p in store.folder.iterdir() if p.name != "stats.json"}
    stats = json.loads((store.folder / "stats.json").read_text())
    return {**files, "stats": json.dumps({**stats, "seconds": 0}).encode()}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each chunk that was encoded."""
    counts: list[int] = []
    encode = Encoder.encode

    def counting(self: Encoder, rows: Sequence[Row]) -> list[Encoded]:
        counts.append(len(rows))
        return encode(self, rows)

    monkeypatch.setattr(Encoder, "encode", counting)
    return counts


def undisturbed(*paths: Path) -> dict[str, bytes]:
    """What a store holds that nothing interrupted."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CHATLM_CACHE", str(paths[0].parent / "undisturbed"))
        return contents(opened(*paths))


def folders(cache: Path) -> list[Path]:
    """What a cache holds, but for locks."""
    return [file for file in cache.iterdir() if file.is_dir()]


def the_partial(cache: Path) -> Path:
    (partial,) = cache.glob(".partial-*")
    return partial


@every_format
@pytest.mark.parametrize("stop_after", [1, 4, 10])
def test_an_interrupted_tokenising_resumes_where_it_was(
    write: Write, stop_after: int, tmp_path: Path, cache: Path, counted: list[int]
) -> None:
    """In each format; what was done is not done again, and the store is the same to the byte."""
    path = write(tmp_path, pairs(ROWS))
    whole = undisturbed(path)

    with pytest.raises(Interrupted) as caught:
        opened(path, stop_after=stop_after)
    left = folders(cache)
    counted.clear()
    store = opened(path)

    assert str(caught.value) == f"tokenising was interrupted after {CHUNK * stop_after:,} rows"
    assert [folder.name for folder in left] == [f".partial-{store.folder.name}"]
    assert sum(counted) == ROWS - CHUNK * stop_after
    assert contents(store) == whole
    assert folders(cache) == [store.folder]


@pytest.mark.parametrize("stop_after", [3, 5, 12])
def test_of_several_files_the_finished_ones_are_left_alone(
    stop_after: int, tmp_path: Path, counted: list[int]
) -> None:
    """Interrupted in the first, at its end, in the second."""
    files = json_lines(tmp_path, pairs(500)), parquet(tmp_path, pairs(ROWS))
    whole = undisturbed(*files)

    with pytest.raises(Interrupted):
        opened(*files, stop_after=stop_after)
    counted.clear()
    store = opened(*files)

    assert sum(counted) == 1500 - CHUNK * stop_after
    assert contents(store) == whole


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError])
def test_whatever_ends_it_what_was_saved_is_kept(
    error: type[BaseException], tmp_path: Path, cache: Path, counted: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Ctrl-C, no memory, a full disk: after the last save the files hold more than the statistics say."""
    path = json_lines(tmp_path, pairs(ROWS))
    whole = undisturbed(path)
    calls = iter(range(1, ROWS))

    def fails(folder: StoreStats, path: Path) -> None:
        if next(calls) == 4:
            raise error
        save(folder, path)

    save = StoreStats.save
    with monkeypatch.context() as patched:
        patched.setattr(StoreStats, "save", fails)
        with pytest.raises(Exception if error is OSError else error):
            opened(path)
    kept = StoreStats.read(the_partial(cache))
    longer = (the_partial(cache) / "tokens.bin").stat().st_size
    counted.clear()
    store = opened(path)

    assert kept is not None
    assert kept.rows == 300
    assert longer > 2 * kept.tokens
    assert sum(counted) == ROWS - 300
    assert contents(store) == whole


def test_files_that_lost_something_are_not_gone_on_with(
    tmp_path: Path, cache: Path, counted: list[int]
) -> None:
    """As after a power cut: all is done again."""
    path = json_lines(tmp_path, pairs(ROWS))
    whole = undisturbed(path)
    with pytest.raises(Interrupted):
        opened(path, stop_after=4)
    tokens = the_partial(cache) / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-2])
    counted.clear()

    store = opened(path)

    assert sum(counted) == ROWS
    assert contents(store) == whole


def test_a_fault_in_a_row_keeps_nothing(tmp_path: Path, cache: Path) -> None:
    """The fixed file is another one."""
    path = json_lines(tmp_path, [*pairs(ROWS), {"prompt": "x"}])

    with pytest.raises(DataError, match=f"row {ROWS + 1} has no column response"):
        opened(path)

    assert folders(cache) == []


WRITER = """
import sys, time
from tests.support.tokenisers import tokenizer
from trainer.data import tokenization
from trainer.data.encoder import Encoder
from trainer.data.token_store import open_store

tokenization.CHUNK_ROWS, tokenization.SAVE_EVERY = 10, 0.0

def slowly():
    time.sleep(0.05)
    return False

encoder = Encoder(tokenizer(), is_causal=False)
open_store(sys.argv[1:], encoder, max_source=64, max_target=64, should_stop=slowly)
"""


def test_a_killed_writer_is_followed_by_one_that_waited(
    tmp_path: Path, cache: Path, counted: list[int]
) -> None:
    """Meanwhile it says how far the other is; after a kill -9 it resumes there."""
    path = parquet(tmp_path, pairs(ROWS))
    whole = undisturbed(path)
    told: list[Tokenising] = []
    stores: list[TokenStore] = []
    waiter = threading.Thread(target=lambda: stores.append(opened(path, progress=told.append)))

    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)]) as process:
        assert wait_until(lambda: bool(list(cache.glob(".partial-*/stats.json"))))
        counted.clear()
        waiter.start()
        assert wait_until(lambda: len(told) >= 2)
        encoded_while_waiting = sum(counted)
        process.send_signal(signal.SIGKILL)
        waiter.join(timeout=60)

    assert process.returncode == -signal.SIGKILL
    assert encoded_while_waiting == 0
    assert told[0].total == ROWS
    assert told[0].rows < told[1].rows + 1
    assert 0 < sum(counted) < ROWS
    assert contents(stores[0]) == whole


def test_who_waits_can_be_stopped(tmp_path: Path, cache: Path) -> None:
    """And leaves the other's work alone."""
    path = json_lines(tmp_path, pairs(ROWS))
    stopped: list[str] = []

    def other() -> None:
        try:
            opened(path, stop_after=1)
        except Interrupted as error:
            stopped.append(str(error))

    def both() -> bool:
        """Asked of the writer, it lets another one wait, and stops it first."""
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(timeout=60)
        return True

    with pytest.raises(Interrupted):
        opened(path, should_stop=both)

    assert stopped == ["interrupted while another process tokenises"]
    assert the_partial(cache).is_dir()


def test_of_two_at_once_one_writes(tmp_path: Path, counted: list[int]) -> None:
    """As two ranks: every row becomes tokens once, and both have the store."""
    path = json_lines(tmp_path, pairs(ROWS))
    stores: list[TokenStore] = []
    threads = [threading.Thread(target=lambda: stores.append(opened(path))) for _ in range(3)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    assert sum(counted) == ROWS
    assert [len(store) for store in stores] == [ROWS] * 3


@pytest.mark.parametrize(("write", "total"), [(parquet, ROWS), (json_lines, None)])
def test_progress_is_told(write: Write, total: int | None, tmp_path: Path) -> None:
    """Of how many where the file says so; the last word is all of them."""
    told: list[Tokenising] = []

    store = opened(write(tmp_path, pairs(ROWS)), progress=told.append)

    assert [progress.rows for progress in told] == list(range(CHUNK, ROWS + 1, CHUNK))
    assert {progress.total for progress in told} == {total}
    assert told[-1].tokens == len(store.tokens)
    assert sorted(progress.seconds for progress in told) == [progress.seconds for progress in told]


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Eight times the rows, about the same peak; test_memory of the readers takes every format."""
    peaks = []
    for count in (ROWS, ROWS + 1, 8 * ROWS):  # the first fills caches
        path = json_lines(tmp_path, pairs(count))
        tracemalloc.start()
        opened(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    assert peaks[2] < 2 * peaks[1]


def test_long_rows_make_small_chunks(
    tmp_path: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk is bounded by its characters, too."""
    monkeypatch.setattr(tokenization, "CHUNK_CHARACTERS", 100)
    rows = [{"prompt": "问" * 40, "response": "答"}] * 7

    store = opened(json_lines(tmp_path, rows))

    assert counted == [3, 3, 1]
    assert len(store) == 7
