"""Which tokens of a conversation the loss counts: every answer and its end, by the chat template."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotune.errors import DataError
from tests.support.data_files import json_lines
from tests.support.tokenisers import FORGETFUL, PICKY, TURNS, tokenizer
from trainer.data.encoder import Encoded, Encoder
from trainer.data.notices import data_notice
from trainer.data.token_store import TokenStore, open_store
from trainer.reading.row import Row

LONG = (
    ("system", "短"),
    ("user", "一加一等于几？"),
    ("assistant", "等于二。"),
    ("user", "Ｔｈａｎｋｓ！"),  # full-width: the tokenizer's normaliser rewrites it
    ("assistant", "不客气。"),
    ("user", "再见"),
)


def conversation(*turns: tuple[str, str]) -> Row:
    return Row.conversation(turns)


ROW = conversation(*LONG, ("assistant", "再见。"))


def text(of: Any, ids: Any) -> str:
    """Without the spaces that the pieces begin with."""
    return str(of.decode(ids)).replace(" ", "")


def learnt_texts(encoder: Encoder, encoded: Encoded) -> list[str]:
    parts = [encoded.source[first:last] for first, last in encoded.loss_spans]
    return [text(encoder.tokenizer, part) for part in [*parts, encoded.target]]


MORNING = conversation(("user", "早"), ("assistant", "早。"), ("user", "好"), ("assistant", "好。"))
THOUGHT = conversation(
    ("user", "早"), ("assistant", "<think>嗯</think>早。"), ("user", "好"), ("assistant", "好。")
)
ANSWERS = ["等于二。[EOS]", "不客气。[EOS]", "再见。[EOS]"]
LINES = [f"{answer}\n" for answer in ANSWERS]
SEPARATED = [line.replace("[EOS]", "[SEP]") for line in LINES]
BARE = [line.replace("[EOS]", "") for line in LINES[:2]]


@pytest.mark.parametrize(
    ("template", "row", "learnt", "is_last_only"),
    [
        (TURNS, ROW, LINES, False),
        (None, ROW, ANSWERS, False),
        # turns end with a token of their own: the model stops there, and nothing is added
        (TURNS.replace("[EOS]", "[SEP]"), ROW, SEPARATED, False),
        # turns end with a line break, at which no model stops
        (TURNS.replace("[EOS]", ""), ROW, [*BARE, "再见。\n[EOS]"], False),
        (FORGETFUL, THOUGHT, ["好。[EOS]\n"], True),
        (FORGETFUL, MORNING, ["早。[EOS]\n", "好。[EOS]\n"], False),
        # there is nothing that the first turn could be predicted from
        (
            TURNS,
            Row((MORNING.messages[1], *MORNING.messages)),
            ["早。[EOS]\n", "好。[EOS]\n"],
            False,
        ),
        (None, Row((MORNING.messages[1], *MORNING.messages)), ["早。[EOS]", "好。[EOS]"], False),
    ],
    ids=[
        "each by the template",
        "each without a template",
        "with the template's own end of turn",
        "with an end where the template has none",
        "the last where the template rewrites earlier turns",
        "each where there was no thinking to leave out",
        "from the second on where the assistant begins",
        "from the second on without a template",
    ],
)
def test_every_answer_is_learnt_with_its_end(
    template: str | None, row: Row, learnt: list[str], is_last_only: bool
) -> None:
    """Unless it cannot be; nothing of the other turns."""
    encoder = Encoder(tokenizer(template), is_causal=True)

    (encoded,) = encoder.encode([row])

    assert learnt_texts(encoder, encoded) == learnt
    assert encoded.is_last_only == is_last_only


def test_a_source_is_what_the_model_reads_when_it_is_asked() -> None:
    """The template's own text, tokenised as a whole: spans do not change the tokens."""
    own = tokenizer(TURNS)
    encoder = Encoder(own, is_causal=True)

    (encoded,) = encoder.encode([ROW])

    messages = [{"role": role, "content": content} for role, content in LONG]
    asked = own.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert encoded.source == own(asked, add_special_tokens=False)["input_ids"]


def test_without_a_template_turns_are_laid_end_to_end() -> None:
    """The end of sequence stands after each answer, as after the last."""
    own = tokenizer()

    (encoded,) = Encoder(own, is_causal=True).encode([ROW])

    assert text(own, encoded.source) == "短\n一加一等于几?等于二。[EOS]Thanks!不客气。[EOS]再见"


def test_a_template_that_refuses_a_conversation_says_why() -> None:
    """With where the row is to be found."""
    encoder = Encoder(tokenizer(PICKY + TURNS), is_causal=True)

    with pytest.raises(DataError) as caught:
        encoder.encode([ROW])

    assert str(caught.value) == (
        "the model's chat template refuses the conversation that begins '短': no system turns; fix "
        "the row or drop it"
    )


def test_seq2seq_learns_the_last_answer() -> None:
    """The turns before it are the prompt, whoever says them."""
    own = tokenizer()

    (encoded,) = Encoder(own, is_causal=False).encode([ROW])

    assert text(own, encoded.target) == "再见。[EOS]"
    assert encoded.loss_spans == ()
    assert "等于二" in text(own, encoded.source)


# --- on disk


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("trainer.data.tokenization.CHUNK_ROWS", 2)


def stored(
    folder: Path, rows: list[Row], encoder: Encoder, max_source: int = 64, max_target: int = 64
) -> TokenStore:
    records = [{"messages": [message.as_dict() for message in row.messages]} for row in rows]
    path = str(json_lines(folder, records))
    return open_store((path,), encoder, max_source=max_source, max_target=max_target)


PLAIN = Row.pair("你好", "你好！")


def test_learnt_tokens_are_kept_beside_the_others(tmp_path: Path) -> None:
    """Also where the first rows have none but those of their answers; counted without being read."""
    encoder = Encoder(tokenizer(TURNS), is_causal=True)
    rows = [PLAIN, PLAIN, PLAIN, ROW, PLAIN, PLAIN, PLAIN]

    store = stored(tmp_path, rows, encoder)

    encoded = encoder.encode(rows)
    every = np.arange(len(rows))
    earlier = [sum(last - first for first, last in each.loss_spans) for each in encoded]
    assert earlier[3] > 0
    assert [int(store.loss_mask(row).sum()) for row in range(len(rows))] == earlier
    assert (store.loss_mask_lengths(every) - store.target_lengths(every)).tolist() == earlier
    assert (
        text(encoder.tokenizer, store.source(3)[store.loss_mask(3)])
        == "等于二。[EOS]\n不客气。[EOS]\n"
    )


def test_rows_without_earlier_answers_need_no_loss_mask(tmp_path: Path) -> None:
    """A byte a token is saved."""
    store = stored(tmp_path, [PLAIN] * 3, Encoder(tokenizer(TURNS), is_causal=True))

    assert store.masks is None
    assert not store.loss_mask(1).any()
    assert not (store.folder / "loss_mask.bin").exists()


def test_a_conversation_has_both_limits_together(tmp_path: Path) -> None:
    """Beyond them it loses its beginning, down to the source's limit; then its answer loses its end."""
    encoder = Encoder(tokenizer(TURNS), is_causal=True)
    (whole,) = encoder.encode([ROW])
    every = [*whole.source, *whole.target]

    for limits in itertools.product((2, 9, len(whole.source), 200), (2, len(whole.target), 200)):
        store = stored(tmp_path, [ROW], encoder, *limits)
        kept = [*store.source(0), *store.target(0)]
        assert len(kept) == min(sum(limits), len(every))
        gone = len(whole.source) - len(store.source(0))
        assert kept == every[gone : gone + len(kept)]
        if len(every) > sum(limits):
            assert len(store.target(0)) == min(
                len(whole.target), max(limits[1], sum(limits) - len(whole.source))
            )
        marked = [i for first, last in whole.loss_spans for i in range(first, last) if i > gone]
        assert (np.flatnonzero(store.loss_mask(0)) + gone).tolist() == marked
        assert store.stats.cut_sources == (gone > 0)
        assert store.stats.cut_targets == (len(store.target(0)) < len(whole.target))


def test_what_is_not_learnt_as_it_stands_is_said(tmp_path: Path) -> None:
    """Cut and rewritten rows, empty answers, special tokens in prose; each with its number."""
    encoder = Encoder(tokenizer(FORGETFUL), is_causal=True)
    spelled = Row.pair("[EOS]是什么？", "[EOS]是结束。")
    rows = [PLAIN, THOUGHT, Row.pair("你好", ""), THOUGHT, spelled]
    lengths = [len(e.source) + len(e.target) for e in encoder.encode(rows)]
    most = lengths[3] - 1

    store = stored(tmp_path, rows, encoder, max_source=most - 6, max_target=6)

    assert data_notice(store.stats, is_causal=True, max_source=most - 6, max_target=6) == (
        f"cut the beginning of {sum(length > most for length in lengths)} of 5 conversations, to {most} "
        f"tokens, and the end of 0 answers; 1 of 5 responses are "
        f"empty: only their end counts in the loss; of 2 conversations only the last answer counts in "
        f"the loss: the chat template rewrites the turns before it; the text of 1 of 5 rows spells a "
        f"special token (first '[EOS]'), which becomes that token"
    )
    assert text(encoder.tokenizer, store.target(2)) == "[EOS]\n"
