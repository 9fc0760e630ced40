"""One store for the same rows, whatever file they come from: format, compression, kind of model."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.chat_templates import FAMILIES
from tests.support.data_files import TABLES, TEXTS, Write, json_lines, packed, parquet
from tests.support.tokenisers import tokenizer
from trainer.data.encoder import Encoder
from trainer.data.token_store import open_store
from trainer.reading.sources import find_files

ENCODERS = {
    "seq2seq": Encoder(tokenizer(), is_causal=False),
    "causal": Encoder(FAMILIES["chatml"].tokenizer(), is_causal=True),
    "causal without a template": Encoder(tokenizer(), is_causal=True),
}
TEXTS_OF_ROWS = [
    ("你好，\n\"早\"", "早。🙂"), ("a,b;c\td|e", " x "), ("", "empty\u2028prompt"), ("第" * 40, ""),
    ("[EOS]?", "é\r\nend[EOS]"),
]  # fmt: skip
PAIRS: list[Any] = [{"prompt": p, "response": r} for p, r in TEXTS_OF_ROWS] * 3
ALPACA: list[Any] = [
    {"instruction": p, "input": "", "output": r, "id": "7"} for p, r in TEXTS_OF_ROWS
] * 3
TALKS: list[Any] = [
    {"messages": [
        {"role": "system", "content": "短"}, {"role": "user", "content": p},
        {"role": "assistant", "content": r, "weight": n % 2}, {"role": "user", "content": "?"},
        {"role": "assistant", "content": p},
    ]} for n, (p, r) in enumerate(TEXTS_OF_ROWS)
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One for all tests: the store of plain lines is made once."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHATLM_CACHE", str(folder))
        yield folder


def digest(path: str | Path, encoder: Encoder) -> str:
    """Of the tokens, of where rows begin, and of what is learnt; made anew for another file."""
    store = open_store(find_files([str(path)]), encoder, max_source=24, max_target=16)
    assert len(store.stats.digest) == 64
    return store.stats.digest


every_encoder = pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
every_file = pytest.mark.parametrize(
    ("write", "codec"), list(itertools.product([*TEXTS, *TABLES], [None, "gzip", "zstd"]))
)


@every_encoder
@every_file
def test_every_format_gives_the_store_of_plain_lines(
    tmp_path: Path, write: Write, codec: str | None, encoder: Encoder
) -> None:
    """Byte for byte; also from another layout, alpaca's."""
    plain = json_lines(tmp_path, PAIRS, "plain.jsonl")
    rows = ALPACA if codec is None else PAIRS

    path = packed(write(tmp_path, rows), codec)

    assert digest(path, encoder) == digest(plain, encoder)


@every_encoder
@every_file
def test_conversations_are_the_same_in_every_format(
    tmp_path: Path, write: Write, codec: str | None, encoder: Encoder
) -> None:
    """With masks; as JSON text where a table has no lists."""
    plain = json_lines(tmp_path, TALKS, "plain.jsonl")
    as_text = [{"messages": json.dumps(talk["messages"])} for talk in TALKS]
    is_text = write.__name__ in ("delimited", "tabbed", "semicolons")

    path = packed(write(tmp_path, as_text if is_text else TALKS), codec)

    assert digest(path, encoder) == digest(plain, encoder)


@every_encoder
def test_other_rows_give_another_store(tmp_path: Path, encoder: Encoder) -> None:
    """One less, in another order, or masked in another way."""
    talks = json.loads(json.dumps(TALKS).replace('"weight": 1', '"weight": 0'))
    others = [PAIRS, PAIRS[1:], PAIRS[::-1], TALKS, *([talks] if encoder.is_causal else [])]

    digests = {
        digest(json_lines(tmp_path, rows, f"{n}.jsonl"), encoder) for n, rows in enumerate(others)
    }

    assert len(digests) == len(others)


@every_encoder
def test_shards_give_the_store_of_one_file(tmp_path: Path, encoder: Encoder) -> None:
    """A folder, and a pattern, in natural order."""
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(12):
        file = parquet(tmp_path, PAIRS[number : number + 1])
        file.rename(shards / f"part-{number}.parquet")
    plain = json_lines(tmp_path, PAIRS[:12], "plain.jsonl")

    assert digest(shards, encoder) == digest(plain, encoder)
    assert digest(shards / "part-?.parquet", encoder) == digest(
        json_lines(tmp_path, PAIRS[:10], "ten.jsonl"), encoder
    )
