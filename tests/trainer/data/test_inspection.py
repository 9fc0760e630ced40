"""What `chatlm data` knows of rows: the tokens of training, their texts, and lengths over all rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from autotune.errors import UsageError
from tests.support.chat_templates import FAMILIES
from tests.support.data_files import json_lines, pairs
from tests.support.tokenisers import tokenizer
from trainer.data.encoder import Encoder
from trainer.data.inspection import lengths, pick, show, token_texts
from trainer.data.token_store import TokenStore, open_store
from trainer.reading.readers import read_rows
from trainer.reading.row import Row

TALK = Row.conversation(
    [("user", "a"), ("assistant", "好 b"), ("user", "c 😀"), ("assistant", "d\ne")]
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATLM_CACHE", str(tmp_path / "cache"))


def stored(folder: Path, encoder: Encoder, records: list[Any]) -> tuple[str, TokenStore]:
    path = str(json_lines(folder, records))
    return path, open_store((path,), encoder, max_source=12, max_target=8)


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_shown_row_is_the_stores(tmp_path: Path, is_causal: bool) -> None:
    """Its tokens, those that are learnt, and as many of them."""
    encoder = Encoder(FAMILIES["chatml"].tokenizer(), is_causal=is_causal)
    messages = [message.as_dict() for message in TALK.messages]
    path, store = stored(tmp_path, encoder, [{"messages": messages}, *pairs(5)])

    for number, row in pick(read_rows(path), range(1, 7)):
        found = show(encoder, number, row, max_source=12, max_target=8)
        assert [token.id for token in found.source] == store.source(number - 1).tolist()
        assert [token.id for token in found.target] == store.target(number - 1).tolist()
        marked = [token.is_learnt for token in found.source]
        assert marked == store.loss_mask(number - 1).tolist()
        assert found.learnt == store.loss_mask_lengths(np.array([number - 1]))[0]
        (whole,) = encoder.encode([row])
        assert found.cut_source == len(whole.source) - len(found.source)
        assert found.cut_target == len(whole.target) - len(found.target)


def test_rows_are_picked_by_number() -> None:
    """Counted from 1; no more is read than the last of them."""
    rows = (Row.pair(str(n), "") for n in range(1, 100))

    assert [(number, row.prompt) for number, row in pick(rows, [2, 5])] == [(2, "2"), (5, "5")]
    assert next(rows).prompt == "6"


def test_a_row_beyond_the_last_is_refused() -> None:
    """With its number."""
    with pytest.raises(UsageError) as caught:
        pick(iter([Row.pair("a", "b")]), [2])

    assert str(caught.value) == ("there is no row 2; give --row a number of a row, counted from 1")


@pytest.mark.parametrize("of", [tokenizer(), ByT5Tokenizer()], ids=["pieces", "bytes"])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_the_texts_of_tokens_together_are_the_whole(of: Any, text: str) -> None:
    """Also of characters that are several tokens."""
    ids = of(text)["input_ids"]

    texts = token_texts(of, ids)

    assert len(texts) == len(ids)
    assert "".join(texts) == of.decode(ids, clean_up_tokenization_spaces=False)


def test_lengths_count_every_row(tmp_path: Path) -> None:
    """In bars that touch, of equal width, ten at most."""
    encoder = Encoder(tokenizer(), is_causal=False)
    _, store = stored(tmp_path, encoder, pairs(50))

    source, target, both = lengths(store, max_source=12, max_target=8)

    every = np.array([[len(store.source(n)), len(store.target(n))] for n in range(50)])
    for side, counted in ((source, every[:, 0]), (target, every[:, 1]), (both, every.sum(1))):
        assert (side.least, side.most, side.total) == (counted.min(), counted.max(), counted.sum())
        assert sum(rows for _, _, rows in side.bars) == 50
        assert len(side.bars) <= 10
        for first, last, rows in side.bars:
            assert rows == ((counted >= first) & (counted <= last)).sum()
        assert all(a[1] + 1 == b[0] for a, b in zip(side.bars, side.bars[1:], strict=False))
        assert (counted <= side.median).mean() >= 0.5
        assert (counted <= side.p95).mean() >= 0.95
    assert both.limit == 20
