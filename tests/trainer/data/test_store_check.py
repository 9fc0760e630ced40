"""A store that was damaged at rest is made anew and told, never trained on: each file, in each way."""

import copy
import json
import os
import pickle
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotune.errors import OutputError
from tests.support.data_files import json_lines
from tests.support.processes import each_within
from tests.support.tokenisers import tokenizer
from trainer.data import store_check
from trainer.data.encoder import Encoder
from trainer.data.store_stats import StoreStats
from trainer.data.token_store import TokenStore, open_store
from trainer.data.tokenization import tokenise

ENCODER = Encoder(tokenizer(), is_causal=True)
FILES = ("tokens.bin", "offsets.bin", "loss_mask.bin", "source_counts.bin", "stats.json")
Change = Callable[[Path], object]

nothing_hangs = each_within(300)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and pieces so small that a file has several."""
    monkeypatch.setenv("CHATLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store_check, "PIECE", 64)
    return tmp_path / "cache"


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Conversations, so that there is a loss mask."""
    turns = [
        [("user", f"问{i}"), ("assistant", "答" * (i % 7 + 1)), ("user", "再"), ("assistant", "好")]
        for i in range(20)
    ]
    records = [{"messages": [{"role": r, "content": c} for r, c in turn]} for turn in turns]
    return str(json_lines(tmp_path, records))


def opened(data: str, told: list[str] | None = None) -> TokenStore:
    told = [] if told is None else told
    return open_store([data], ENCODER, max_source=24, max_target=16, notify=told.append)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES if name != "stats.json"}


def stats_of(folder: Path) -> dict[str, Any]:
    """Without what is another for each making."""
    values: dict[str, Any] = json.loads((folder / "stats.json").read_text())
    return {k: v for k, v in values.items() if k not in ("seconds", "checksum", "damage")}


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def longer(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "inside").touch()


def a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def a_link(file: Path) -> None:
    """To a copy of the very content."""
    copy = file.parent.parent.parent / f"copy-of-{file.name}"
    file.rename(copy)
    file.symlink_to(copy)


def endless(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def open_to_all(file: Path) -> None:
    file.chmod(0o666)


CHANGES: list[Change] = [
    flipped, cut, longer, emptied, Path.unlink, a_folder, a_pipe, a_link, endless, open_to_all,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_never_trained_on(
    name: str, change: Change, data: str, cache: Path
) -> None:
    """The data are tokenised again, one line says why, and the next opening finds nothing wrong."""
    store = opened(data)
    whole, stats = contents(store.folder), stats_of(store.folder)
    change(store.folder / name)
    told: list[str] = []

    again = opened(data, told)
    later: list[str] = []
    opened(data, later)

    assert contents(again.folder) == whole
    assert stats_of(again.folder) == stats
    assert [path.name for path in cache.iterdir()] == [store.folder.name]
    assert later == []
    (line,) = told
    assert line.startswith(f"the token store {store.folder} was damaged (")
    assert name in line
    assert line.endswith("): the data are tokenised again")


SAID = [
    ("tokens.bin", flipped, "tokens.bin has another checksum"),
    ("tokens.bin", cut, "tokens.bin has 413 bytes instead of 414"),
    ("offsets.bin", longer, "offsets.bin has 329 bytes instead of 328"),
    ("loss_mask.bin", Path.unlink, "loss_mask.bin is missing"),
    ("source_counts.bin", a_pipe, "source_counts.bin is no plain file"),
    ("stats.json", emptied, "stats.json cannot be read"),
    ("stats.json", Path.unlink, "stats.json cannot be read: No such file or directory"),
    ("stats.json", a_link, "stats.json cannot be read: Too many levels of symbolic links"),
    ("tokens.bin", open_to_all, "other users may have written tokens.bin"),
]


@pytest.mark.parametrize(("name", "change", "said"), SAID, ids=[said for _, _, said in SAID])
def test_the_line_says_what_is_wrong(name: str, change: Change, said: str, data: str) -> None:
    folder = opened(data).folder
    change(folder / name)
    told: list[str] = []

    opened(data, told)

    assert told == [f"the token store {folder} was damaged ({said}): the data are tokenised again"]


def forged(folder: Path, **changes: Any) -> None:
    """Changes in the stats, with all checksums made to fit."""
    stats = StoreStats.parse((folder / "stats.json").read_bytes())
    for name, value in changes.items():
        setattr(stats, name, value)
    for name in stats.checksums:
        stats.checksums[name] = zlib.crc32((folder / name).read_bytes())
    stats.save(folder)


FIELDS: list[tuple[str, Any]] = [
    ("longest_source", [0, 99]), ("longest_source", [19, 0]), ("longest_target", [10**9, 2]),
    ("longest_both", [3, 10**6]), ("largest_id", [1, 70_000]), ("rows", 19), ("rows", 0),
    ("tokens", 0), ("tokens", 1 << 61), ("width", 4), ("has_loss_mask", False), ("name", "other"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), FIELDS)
def test_what_memory_and_bounds_depend_on_must_agree_with_the_tokens(
    field: str, value: Any, data: str
) -> None:
    """Even where the checksums fit."""
    store = opened(data)
    whole, stats = contents(store.folder), stats_of(store.folder)
    forged(store.folder, **{field: value})
    told: list[str] = []

    again = opened(data, told)

    assert len(told) == 1
    assert contents(again.folder) == whole
    assert stats_of(again.folder) == stats


DIGITS: list[tuple[str, Any]] = [
    ("cut_sources", 1), ("seconds", 1e9), ("digest", "0" * 64), ("spelling", "x"), ("damage", "x"),
    ("rows", "20"), ("rows", 20.0), ("rows", True), ("rows", -20), ("rows", 10**400), ("rows", None),
    ("has_loss_mask", 1), ("longest_both", [1]), ("longest_both", {"0": 1}), ("checksums", []),
    ("checksums", {"tokens.bin": 2**64}), ("spelling", "\ud800"), ("seconds", float("nan")),
    ("added", 1),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), DIGITS)
def test_a_value_that_nobody_wrote_is_seen(field: str, value: Any, data: str) -> None:
    """In any field, of any type: the stats carry a checksum of their own."""
    folder = opened(data).folder
    stats = stats_of(folder)
    values = json.loads((folder / "stats.json").read_text())
    (folder / "stats.json").write_text(json.dumps({**values, field: value}))
    told: list[str] = []

    opened(data, told)

    assert len(told) == 1
    assert stats_of(folder) == stats


@pytest.mark.parametrize(
    "text",
    [
        b"null",
        b"[]",
        b"{",
        b"[" * 60_000,
        b"\xff\xfe",
        b"9" * 70_000,
        b" " * 10**7,
        b'{"a":' * 9000,
    ],
    ids=["null", "list", "cut", "deep list", "no UTF-8", "long number", "long", "deep object"],
)
def test_stats_that_are_no_stats_are_seen(text: bytes, data: str) -> None:
    folder = opened(data).folder
    (folder / "stats.json").write_bytes(text)
    told: list[str] = []

    opened(data, told)

    assert told == [
        f"the token store {folder} was damaged (stats.json cannot be read): the data are tokenised again"
    ]


@pytest.mark.parametrize(
    ("place", "value"), [(0, 1), (-1, 10**6), (5, -1), (5, 1 << 62), (20, -(1 << 63)), (7, 0)]
)
def test_offsets_that_do_not_rise_are_seen(place: int, value: int, data: str) -> None:
    """Even where the checksums fit: no row may lie outside the tokens."""
    store = opened(data)
    whole = contents(store.folder)
    offsets = np.array(store.offsets)
    offsets[place] = value
    (store.folder / "offsets.bin").write_bytes(offsets.tobytes())
    forged(store.folder)
    told: list[str] = []

    again = opened(data, told)

    (line,) = told
    assert "(offsets.bin does not rise from 0 to 207)" in line
    assert contents(again.folder) == whole


def test_a_mask_of_other_bytes_is_seen(data: str) -> None:
    folder = opened(data).folder
    mask = (folder / "loss_mask.bin").read_bytes()
    (folder / "loss_mask.bin").write_bytes(mask[:-1] + b"\2")
    forged(folder)
    told: list[str] = []

    opened(data, told)

    assert "(loss_mask.bin is no mask)" in told[0]


@pytest.mark.parametrize(
    ("kind", "said"),
    [("link", "is a link"), ("dangling", "is a link"), ("file", "is no folder"),
     ("pipe", "is no folder"), ("open", "other users may have written")],
)  # fmt: skip
def test_a_store_must_be_a_private_folder(kind: str, said: str, data: str, tmp_path: Path) -> None:
    """What stands in its place is removed, and a link's target left alone."""
    folder = opened(data).folder
    elsewhere = tmp_path / "elsewhere"
    shutil.move(folder, elsewhere)
    before = contents(elsewhere)
    match kind:
        case "link":
            folder.symlink_to(elsewhere)
        case "dangling":
            folder.symlink_to("nowhere")
        case "file":
            folder.write_text("")
        case "pipe":
            os.mkfifo(folder)
        case "open":
            shutil.copytree(elsewhere, folder)
            folder.chmod(0o777)
    told: list[str] = []

    again = opened(data, told)

    assert said in told[0]
    assert contents(again.folder) == before == contents(elsewhere)
    assert not again.folder.is_symlink()


def test_a_store_that_others_may_read_is_closed_to_them(data: str) -> None:
    """As `cp -r` leaves a copy: it is whole, so it is kept."""
    folder = opened(data).folder
    folder.chmod(0o755)
    told: list[str] = []

    opened(data, told)

    assert told == []
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_store_under_another_name_is_not_taken_for_its_namesake(
    data: str, cache: Path, tmp_path: Path
) -> None:
    """Both are whole; who may rename in the folder could swap them."""
    other = str(json_lines(tmp_path, [{"messages": [{"role": "user", "content": "甲"}, {"role": "assistant", "content": "乙"}]}], "other.jsonl"))  # fmt: skip
    one, two = opened(data).folder, opened(other).folder
    whole = contents(one)
    shutil.rmtree(one)
    two.rename(one)
    told: list[str] = []

    again = opened(data, told)

    assert "(stats.json is of other data)" in told[0]
    assert contents(again.folder) == whole


def test_an_unfinished_part_is_not_taken_for_the_store(data: str) -> None:
    """Its own checksums agree: it lacks rows."""
    store = opened(data)
    whole, folder = stats_of(store.folder), store.folder
    stats = StoreStats(**json.loads((folder / "stats.json").read_text()))
    stats.digest = ""
    stats.save(folder)
    told: list[str] = []

    opened(data, told)

    assert len(told) == 1
    assert "stats.json is of an unfinished store" in told[0]
    assert stats_of(folder) == whole


def test_a_process_that_holds_the_damaged_store_goes_on(data: str) -> None:
    """Its files are unlinked, never cut or written; a loader process that it starts maps the new ones."""
    store = opened(data)
    before = copy.deepcopy(np.array(store.tokens))
    file = store.folder / "offsets.bin"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.unlink()
    file.write_bytes(content)
    file.chmod(0o600)
    sent = pickle.dumps(store)
    told: list[str] = []

    opened(data, told)

    assert len(told) == 1
    assert np.array_equal(store.tokens, before)
    arrived = pickle.loads(sent)
    assert np.array_equal(arrived.tokens, before)
    assert arrived.stats == store.stats


def test_a_disk_that_damages_what_is_written_ends_in_an_error(
    data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in an endless loop; the next call tries again."""

    def badly(folder: Path, *arguments: Any, **options: Any) -> None:
        tokenise(folder, *arguments, **options)
        flipped(folder / "tokens.bin")

    with monkeypatch.context() as patched:
        patched.setattr("trainer.data.token_store.tokenise", badly)
        with pytest.raises(OutputError) as caught:
            opened(data)
    told: list[str] = []
    store = opened(data, told)

    assert str(caught.value) == (
        f"the token store {store.folder} is damaged just after it was made (tokens.bin has another "
        f"checksum); check the disk (dmesg), or set CHATLM_CACHE to a folder of your own on another "
        f"one"
    )
    assert len(told) == 1


def test_too_many_open_files_damage_no_store(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that another file would have too is told as it is."""
    store = opened(data)
    whole = contents(store.folder)

    def full(name: str, flags: int) -> int:
        raise OSError(24, "Too many open files", name)

    with monkeypatch.context() as patched:
        patched.setattr(store_check, "_safely", full)
        with pytest.raises(OutputError) as caught:
            opened(data)

    assert str(caught.value) == (
        f"cannot use the token cache {store.folder.parent}: Too many open files; set CHATLM_CACHE to a "
        f"folder of your own"
    )
    assert contents(store.folder) == whole
