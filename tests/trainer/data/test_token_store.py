"""Tokens on disk, and the encoder that makes them, with the bundled tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import DataError, ModelError, OutputError
from tests.support.data_files import json_lines
from tests.support.tokenisers import tokenizer
from trainer.data.cache_folder import cache_folder
from trainer.data.encoder import Encoded, Encoder
from trainer.data.notices import data_notice
from trainer.data.token_store import TokenStore, open_store
from trainer.reading.layouts import Columns
from trainer.reading.row import Row

ENCODER = Encoder(tokenizer(), is_causal=False)
CAUSAL = Encoder(tokenizer(), is_causal=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CHATLM_CACHE", str(folder))
    return folder


def written(folder: Path, texts: Sequence[tuple[str, str]], name: str = "rows.jsonl") -> str:
    return str(json_lines(folder, [{"prompt": p, "response": r} for p, r in texts], name))


def opened(*paths: str, by: Encoder = ENCODER, source: int = 64, target: int = 64) -> TokenStore:
    return open_store(paths, by, max_source=source, max_target=target)


TEXTS = [
    ("你好", "你好！有什么可以帮您？"),
    ("一加一", "二"),
    ("", "空"),
    ("谢谢", "不客气，再见。"),
]


# --- the encoder


def text_of(ids: Any) -> str:
    text: str = ENCODER.tokenizer.decode(ids, skip_special_tokens=True)
    return text.replace(" ", "")


def row(prompt: str, response: str) -> Row:
    return Row.pair(prompt, response)


def test_source_and_target_end_with_the_end_of_sequence() -> None:
    """And hold the text, whole, before it."""
    (encoded,) = ENCODER.encode([row("一加一等于几。", "等于二。")])
    source, target = encoded.source, encoded.target

    assert source[-1] == target[-1] == ENCODER.tokenizer.eos_token_id
    assert ENCODER.eos not in (*source[:-1], *target[:-1])
    assert text_of(source) == "一加一等于几。"
    assert text_of(target) == "等于二。"


def test_a_causal_target_alone_has_an_end() -> None:
    """The prompt goes on into the answer; an empty one still has a token to predict from."""
    whole, empty = CAUSAL.encode([row("你好", "好"), row("", "好")])

    assert CAUSAL.eos not in whole.source
    assert whole.target[-1] == CAUSAL.eos
    assert len(empty.source) == 1


@given(st.lists(st.integers(5, 100), max_size=40), st.integers(1, 50))
def test_what_is_cut_keeps_what_counts(ids: list[int], longest: int) -> None:
    """A source its beginning and its end of sequence; a target its beginning."""
    whole = Encoded([*ids, ENCODER.eos], [*ids, ENCODER.eos])

    source, target = ENCODER.fit(whole, max_source=longest, max_target=longest)

    assert len(source) == len(target) == min(len(whole.source), longest)
    assert source[-1] == ENCODER.eos
    assert source[:-1] == whole.source[: len(source) - 1]
    assert target == whole.target[:longest]


def test_a_causal_prompt_keeps_its_last_part() -> None:
    """The question stands at its end."""
    assert CAUSAL.fit(Encoded([1, 2, 3, 4], [5]), max_source=2, max_target=1) == ([3, 4], [5])


def test_a_small_vocabulary_takes_two_bytes_a_token() -> None:
    """Every id of the bundled tokenizer fits."""
    assert ENCODER.dtype is np.uint16
    assert max(ENCODER.tokenizer.get_vocab().values()) < 2**16


def test_the_identity_is_that_of_what_encoding_depends_on() -> None:
    """The same for the same tokenizer, another for another kind of model."""
    assert Encoder(tokenizer(), is_causal=False).tokenizer_hash == ENCODER.tokenizer_hash
    assert CAUSAL.tokenizer_hash != ENCODER.tokenizer_hash


def test_a_tokenizer_without_an_end_is_refused() -> None:
    """A model could never learn to stop."""

    class Endless:
        eos_token_id = None

    with pytest.raises(ModelError) as caught:
        Encoder(Endless(), is_causal=False)

    assert str(caught.value) == (
        "the model's tokenizer has no end-of-sequence token; set eos_token"
    )


# --- the store


def test_a_store_holds_what_the_encoder_made(tmp_path: Path) -> None:
    """Row by row, with their lengths; mapped from the disk, two bytes a token."""
    store = opened(written(tmp_path, TEXTS))

    pairs = [(e.source, e.target) for e in ENCODER.encode([row(*texts) for texts in TEXTS])]
    rows = np.arange(len(store))
    assert len(store) == len(TEXTS)
    assert [store.source(i).tolist() for i in range(4)] == [source for source, _ in pairs]
    assert [store.target(i).tolist() for i in range(4)] == [target for _, target in pairs]
    assert store.source_lengths(rows).tolist() == [len(source) for source, _ in pairs]
    assert store.target_lengths(rows).tolist() == [len(target) for _, target in pairs]
    assert store.target_lengths(rows[[2, 0]]).tolist() == [len(pairs[i][1]) for i in (2, 0)]
    assert store.longest() == (max(len(s) for s, _ in pairs), max(len(t) for _, t in pairs))
    assert store.tokens.dtype == np.uint16
    assert isinstance(store.tokens, np.memmap)
    assert isinstance(store.offsets, np.memmap)


def test_more_rows_than_are_read_at_once_stay_in_order(tmp_path: Path) -> None:
    """Files follow each other as they were given."""
    first = written(tmp_path, [(f"{i}", "甲") for i in range(1500)], "first.jsonl")
    second = written(tmp_path, [(f"{i}", "乙") for i in range(1500, 1600)], "second.jsonl")

    store = opened(first, second)

    assert len(store) == 1600
    assert [text_of(store.source(i)) for i in (0, 1023, 1024, 1499, 1500, 1599)] == [
        "0", "1023", "1024", "1499", "1500", "1599",
    ]  # fmt: skip
    assert text_of(store.target(1499)) == "甲"
    assert text_of(store.target(1500)) == "乙"


def test_what_was_cut_is_counted(tmp_path: Path) -> None:
    """Rows, of each side; exactly as long as allowed is not cut."""
    path = written(tmp_path, TEXTS)
    encoded = ENCODER.encode([row(*texts) for texts in TEXTS])
    lengths = np.array([[len(e.source), len(e.target)] for e in encoded])
    most_source, most_target = sorted(lengths[:, 0])[1], sorted(lengths[:, 1])[2]

    cut = opened(path, source=int(most_source), target=int(most_target))
    whole = opened(path)

    counts = (cut.stats.cut_sources, cut.stats.cut_targets)
    assert counts == tuple((lengths > [most_source, most_target]).sum(0))
    assert cut.longest() == (most_source, most_target)
    targets = [each.target[:most_target] for each in encoded]  # one that is cut has no end
    assert [cut.target(i).tolist() for i in range(4)] == targets
    assert data_notice(cut.stats, is_causal=False, max_source=5, max_target=7) == (
        f"truncated {counts[0]} of 4 sources to 5 tokens and {counts[1]} targets to 7"
    )
    assert data_notice(whole.stats, is_causal=False, max_source=64, max_target=64) is None


def test_a_store_is_tokenised_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is known by content: another name or folder for the same file is the same store."""
    first = opened(written(tmp_path, TEXTS))
    (tmp_path / "copy").mkdir()
    copy = written(tmp_path / "copy", TEXTS, "renamed.jsonl")
    monkeypatch.setattr(Encoder, "encode", _never)

    again = opened(copy)

    assert np.array_equal(again.tokens, first.tokens)
    assert len(list(cache.glob("[!.]*"))) == 1


def _never(*_: object) -> Any:
    raise AssertionError("tokenised again")


def test_what_changes_the_tokens_makes_another_store(tmp_path: Path, cache: Path) -> None:
    """The content, the order of the files, a length, the kind of model, the columns."""
    one, two = written(tmp_path, TEXTS), written(tmp_path, TEXTS[:2], "two.jsonl")

    opened(one)
    opened(one, two)
    opened(two, one)
    opened(one, source=32)
    opened(one, target=32)
    opened(one, by=CAUSAL)
    open_store([one], ENCODER, Columns(prompt="response"), max_source=64, max_target=64)
    written(tmp_path, TEXTS[1:])
    opened(one)

    assert len(list(cache.glob("[!.]*"))) == 8


def test_a_damaged_file_leaves_no_store(tmp_path: Path, cache: Path) -> None:
    """What was read of it before is not kept."""
    path = written(tmp_path, [("问", "答")] * 1500)
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[:-4])

    with pytest.raises(DataError, match=r"rows\.jsonl, line 1500 is damaged or cut off"):
        opened(path)

    assert [file for file in cache.iterdir() if file.is_dir()] == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """Before anything is written."""
    with pytest.raises(DataError, match=r"data file .*none\.jsonl is not there; give Parquet"):
        opened(str(tmp_path / "none.jsonl"))


def test_a_file_that_cannot_be_read_is_not_blamed_on_the_cache(tmp_path: Path, cache: Path) -> None:
    """With the system's reason."""
    path = written(tmp_path, TEXTS)
    with pytest.MonkeyPatch.context() as patched:  # permission bits do not bind the superuser
        patched.setattr(Path, "open", _forbidden)
        with pytest.raises(DataError) as caught:
            opened(path)

    assert str(caught.value) == f"cannot read {path}: Permission denied"
    assert not cache.exists()


def _forbidden(path: Path, *_: object) -> Any:
    raise PermissionError(13, "Permission denied", str(path))


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the variable that moves it."""
    path = written(tmp_path, TEXTS)
    monkeypatch.setenv("CHATLM_CACHE", f"{path}/cache")

    with pytest.raises(OutputError) as caught:
        opened(path)

    assert str(caught.value) == (
        f"cannot use the token cache {path}/cache: Not a directory; set CHATLM_CACHE to a folder of your "
        f"own"
    )


def test_the_cache_is_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless a variable says otherwise."""
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    own = cache_folder()
    monkeypatch.delenv("CHATLM_CACHE")
    default = cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast/cache")

    assert own.name == "cache"
    assert default == Path("/home/someone/.cache/chatlm")
    assert cache_folder() == Path("/fast/cache/chatlm")
