"""Tokenising resumes where it was interrupted, once for all processes, in bounded memory."""

import errno
import functools
import itertools
import json
import shutil
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import DataError, OutputError
from tests.support.data_files import Write, every_format, json_lines, pairs, parquet
from tests.support.processes import wait_until
from tests.support.tokenisers import tokenizer
from trainer.data import tokenization
from trainer.data.encoder import Encoded, Encoder
from trainer.data.store_check import read_stats
from trainer.data.store_stats import StoreStats
from trainer.data.token_store import TokenStore, open_store
from trainer.data.tokenization import Interrupted
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
    monkeypatch.setattr("trainer.data.store_lock.TELL_EVERY", 0.01)
    return tmp_path / "cache"


def opened(*paths: Path, stop_after: int | None = None, **options: Any) -> TokenStore:
    chunks = itertools.count(1)
    options = {"should_stop": lambda: next(chunks) == stop_after, **options}
    return open_store([str(p) for p in paths], encoder(), max_source=64, max_target=64, **options)


def contents(store: TokenStore) -> dict[str, bytes]:
    """All files but the statistics, and those without what is another for each making."""
    files = {p.name: p.read_bytes() for p in store.folder.iterdir() if p.name != "stats.json"}
    stats = json.loads((store.folder / "stats.json").read_text())
    own = {"seconds": 0, "checksum": 0, "damage": None}
    return {**files, "stats": json.dumps({**stats, **own}).encode()}


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
    kept = read_stats(the_partial(cache))
    longer = (the_partial(cache) / "tokens.bin").stat().st_size
    counted.clear()
    store = opened(path)

    assert kept.rows == 300
    assert longer > 2 * kept.tokens
    assert sum(counted) == ROWS - 300
    assert contents(store) == whole


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("tokens.bin", lambda file: file.write_bytes(file.read_bytes()[:-2]), "bytes instead of"),
        ("tokens.bin", flip, "tokens.bin has another checksum"),
        ("offsets.bin", flip, "offsets.bin has another checksum"),
        ("offsets.bin", Path.unlink, "offsets.bin cannot be read: No such file or directory"),
        ("stats.json", flip, "stats.json"),
        ("tokens.bin", lambda file: file.with_name("copy").hardlink_to(file), "is a hard link"),
    ],
    ids=["cut", "flipped tokens", "flipped offsets", "missing", "flipped stats", "hard link"],
)
def test_a_part_that_was_damaged_is_not_gone_on_with(
    name: str, change: Callable[[Path], object], said: str,
    tmp_path: Path, cache: Path, counted: list[int],
) -> None:  # fmt: skip
    """As after a power cut, or bits that flipped: all is done again, and one line says why."""
    path = json_lines(tmp_path, pairs(ROWS))
    whole = undisturbed(path)
    with pytest.raises(Interrupted):
        opened(path, stop_after=4)
    partial = the_partial(cache)
    change(partial / name)
    told: list[str] = []
    counted.clear()

    store = opened(path, notify=told.append)

    assert sum(counted) == ROWS
    assert contents(store) == whole
    (line,) = told
    assert line.startswith(f"the token store {partial} was damaged (")
    assert said in line
    assert line.endswith("): the data are tokenised again")


@pytest.mark.parametrize("kind", ["link to a folder", "link to a file", "file"])
def test_what_takes_the_place_of_a_part_is_removed_and_not_followed(
    kind: str, tmp_path: Path, cache: Path
) -> None:
    """A link's target keeps what is in it."""
    path = json_lines(tmp_path, pairs(ROWS))
    whole = undisturbed(path)
    with pytest.raises(Interrupted):
        opened(path, stop_after=4)
    partial, victim = the_partial(cache), tmp_path / "victim"
    partial.rename(victim)
    (victim / "stats.json").unlink()
    before = {file.name: file.read_bytes() for file in victim.iterdir()}
    match kind:
        case "link to a folder":
            partial.symlink_to(victim)
        case "link to a file":
            partial.symlink_to(victim / "tokens.bin")
        case _:
            partial.touch()

    store = opened(path)

    assert contents(store) == whole
    assert folders(cache) == [store.folder]
    assert {file.name: file.read_bytes() for file in victim.iterdir()} == before


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin", "stats.json"])
def test_a_link_among_the_files_of_a_part_is_not_followed(
    name: str, tmp_path: Path, cache: Path
) -> None:
    path = json_lines(tmp_path, pairs(ROWS))
    whole = undisturbed(path)
    with pytest.raises(Interrupted):
        opened(path, stop_after=4)
    file, victim = the_partial(cache) / name, tmp_path / "victim"
    file.rename(victim)
    before = victim.read_bytes()
    file.symlink_to(victim)

    store = opened(path)

    assert contents(store) == whole
    assert victim.read_bytes() == before


def test_what_a_killed_writer_left_after_its_last_save_is_removed(
    tmp_path: Path, cache: Path, counted: list[int]
) -> None:
    """Files that the statistics do not know, of any kind."""
    path = json_lines(tmp_path, pairs(ROWS))
    whole = undisturbed(path)
    with pytest.raises(Interrupted):
        opened(path, stop_after=4)
    partial = the_partial(cache)
    (partial / "loss_mask.bin").write_bytes(b"x" * 10**5)
    (partial / ".stats.json.99.tmp").write_text("{")
    (partial / "more").mkdir()
    counted.clear()

    store = opened(path)

    assert sum(counted) == ROWS - 400
    assert contents(store) == whole


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path, cache: Path) -> None:
    """Its target keeps its content."""
    path, victim = json_lines(tmp_path, pairs(ROWS)), tmp_path / "victim"
    victim.write_text("precious")
    with pytest.raises(Interrupted):
        opened(path, stop_after=1)
    lock = cache / f".lock-{the_partial(cache).name.removeprefix('.partial-')}"
    lock.symlink_to(victim)

    with pytest.raises(OutputError) as caught:
        opened(path)

    assert str(caught.value) == (
        f"cannot lock {lock}: Too many levels of symbolic links; remove it, or set CHATLM_CACHE to a "
        f"folder of your own"
    )
    assert victim.read_text() == "precious"


# --- while it is written


def appended(path: Path) -> None:
    with path.open("a") as file:
        file.write('{"prompt": "x", "response": "y"}\n')


def overwritten(path: Path) -> None:
    """In place, of the same size."""
    path.write_bytes(path.read_bytes().replace("回答".encode(), "答回".encode()))


def replaced(path: Path) -> None:
    new = path.with_name("new")
    new.write_text(path.read_text()[:-100] + "\n")
    new.rename(path)


@pytest.mark.parametrize("change", [appended, overwritten, replaced])
@pytest.mark.parametrize("end", [None, 4])
def test_data_that_change_while_they_are_read_keep_nothing(
    change: Callable[[Path], object], end: int | None, tmp_path: Path, cache: Path
) -> None:
    """Their rows would lie under the name of the old content; also where it is stopped afterwards."""
    path = json_lines(tmp_path, [{"prompt": f"{i}", "response": "回答"} for i in range(ROWS)])
    chunks = itertools.count(1)

    def changes() -> bool:
        number = next(chunks)
        if number == 3:
            change(path)
        return number == end

    with pytest.raises(DataError) as caught:
        opened(path, should_stop=changes)

    assert str(caught.value) == (
        f"{path} changed while it was read; run the command again once nothing writes to it"
    )
    assert folders(cache) == []


def after(act: Callable[[], object]) -> Callable[[], bool]:
    """Acts after each chunk, and never stops."""

    def should_stop() -> bool:
        act()
        return False

    return should_stop


def test_data_that_vanish_while_they_are_read_keep_nothing(tmp_path: Path, cache: Path) -> None:
    path = json_lines(tmp_path, pairs(ROWS))
    chunks = itertools.count(1)

    def vanishes() -> None:
        if next(chunks) == 3:
            path.unlink()

    with pytest.raises(DataError, match=r"rows\.jsonl is not there"):
        opened(path, should_stop=after(vanishes))

    assert folders(cache) == []


def test_data_that_are_touched_while_they_are_read_are_the_same_data(tmp_path: Path) -> None:
    """Hours of work are not thrown away for a new date."""
    path = json_lines(tmp_path, pairs(ROWS))
    whole = undisturbed(path)

    assert contents(opened(path, should_stop=after(path.touch))) == whole


def test_a_cache_that_is_removed_meanwhile_is_told(tmp_path: Path, cache: Path) -> None:
    path = json_lines(tmp_path, pairs(ROWS))

    with pytest.raises(OutputError) as caught:
        opened(path, should_stop=after(lambda: shutil.rmtree(cache, ignore_errors=True)))
    store = opened(path)

    assert str(caught.value) == (
        f"the token cache {cache} was removed while it was written; run the command again"
    )
    assert len(store) == ROWS


@pytest.mark.parametrize(
    ("write", "rows"), [(json_lines, "300 rows take "), (parquet, "all 1,000 need about ")]
)
def test_a_full_disk_is_told_with_the_space_that_is_needed(
    write: Write, rows: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as that is known; what was saved is kept."""
    path = write(tmp_path, pairs(ROWS))
    whole = undisturbed(path)
    saves = itertools.count(1)
    save = StoreStats.save

    def full(stats: StoreStats, folder: Path) -> None:
        if next(saves) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(stats, folder)

    with monkeypatch.context() as patched:
        patched.setattr(StoreStats, "save", full)
        with pytest.raises(OutputError) as caught:
            opened(path)

    said = str(caught.value)
    assert said.startswith(f"cannot write the token cache {cache}: No space left on device (")
    assert " are free, 300 rows take " in said
    assert rows in said
    assert said.endswith("); free some, or set CHATLM_CACHE to a folder with space")
    assert contents(opened(path)) == whole


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
        waiter.join(timeout=300)

    assert process.returncode == -signal.SIGKILL
    assert encoded_while_waiting == 0
    assert told[0].total == ROWS
    assert told[0].rows < told[1].rows + 1
    assert 0 < sum(counted) < ROWS
    assert contents(stores[0]) == whole


def test_who_waits_while_a_damaged_store_is_made_anew_is_told_too(
    tmp_path: Path, cache: Path, counted: list[int]
) -> None:
    """As a rank whose neighbour found the damage first: the main process alone tells the user."""
    path = parquet(tmp_path, pairs(ROWS))
    store = opened(path)
    whole = contents(store)
    flip(store.folder / "tokens.bin")
    told: list[str] = []

    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)]) as process:
        assert wait_until(lambda: bool(list(cache.glob(".partial-*/stats.json"))))
        counted.clear()
        again = opened(path, notify=told.append)

    assert process.returncode == 0
    assert counted == []
    assert told == [
        f"the token store {store.folder} was damaged (tokens.bin has another checksum): the data are "
        f"tokenised again"
    ]
    assert contents(again) == whole


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
        thread.join(timeout=300)
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
        thread.join(timeout=300)

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
