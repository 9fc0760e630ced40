"""The bundled data and tokenizer: what `bench` writes, and what the trainer may rely on."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from bench import make_data, make_tokenizer
from tests.support import tokenisers

FOREIGN = (
    "龘靐齉爩𠮷 都是少见的字",
    "表情🙂和👩‍👩‍👧也要留下",
    "Hello, world!  two spaces\nand a line\tand a tab",
    "  开头和结尾的空格  ",
    "价格是１２３４５．６７元，½ ﬁne，naïve café",
    "<0x41> 不是字母",
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tokenisers.tokenizer()


def bundled(name: str) -> list[dict[str, str]]:
    text = (make_data.FOLDER / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


TRAIN = bundled("train.jsonl")
VALID = bundled("valid.jsonl")


@pytest.mark.parametrize(
    ("script", "names"),
    [
        (make_data, ("train.jsonl", "valid.jsonl")),
        (make_tokenizer, ("tokenizer.json", "tokenizer_config.json")),
    ],
)
def test_the_bundled_files_are_what_the_scripts_write(
    script: Any, names: tuple[str, ...], tmp_path: Path
) -> None:
    script.write(tmp_path)

    for name in names:
        assert (tmp_path / name).read_bytes() == (script.FOLDER / name).read_bytes()


def test_another_seed_gives_other_data() -> None:
    assert make_data.rows(1) != make_data.rows(2)


def test_a_file_that_was_edited_is_named_as_stale(tmp_path: Path) -> None:
    make_data.write(tmp_path)
    (tmp_path / "valid.jsonl").write_text("{}\n", encoding="utf-8")

    assert make_data.stale(tmp_path) == ["valid.jsonl"]


def test_every_row_is_a_prompt_and_a_response_and_neither_is_blank() -> None:
    for row in TRAIN + VALID:
        assert list(row) == ["prompt", "response"]
        assert all(isinstance(text, str) and text == text.strip() != "" for text in row.values())


def test_no_prompt_occurs_twice_not_even_across_the_files() -> None:
    prompts = [row["prompt"] for row in TRAIN + VALID]

    assert len(set(prompts)) == len(prompts)


def test_every_validation_response_is_taught_in_training() -> None:
    assert {row["response"] for row in VALID} <= {row["response"] for row in TRAIN}


def test_every_task_gives_all_the_rows_it_promises() -> None:
    assert len(TRAIN) == sum(task.train for task in make_data.TASKS)
    assert len(VALID) == sum(task.valid for task in make_data.TASKS)


def test_lengths_vary_widely() -> None:
    for side, shortest, longest in (("prompt", 5, 80), ("response", 2, 100)):
        lengths = [len(row[side]) for row in TRAIN]

        assert min(lengths) <= shortest
        assert max(lengths) >= longest


def test_the_special_tokens_come_first_in_their_order(tokenizer: Any) -> None:
    names = ["[PAD]", "[EOS]", "[SEP]", "[BOS]", "[CLS]", "[MASK]", "[UNK]"]

    assert tokenizer.convert_ids_to_tokens(list(range(7))) == names
    kinds = ("pad", "eos", "sep", "bos", "cls", "mask", "unk")
    assert [getattr(tokenizer, f"{kind}_token") for kind in kinds] == names


def test_the_bytes_follow_the_special_tokens_and_are_not_special(tokenizer: Any) -> None:
    ids = list(range(7, 7 + 256))

    assert tokenizer.convert_ids_to_tokens(ids) == list(make_tokenizer.BYTES)
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_the_vocabulary_has_2048_entries(tokenizer: Any) -> None:
    assert len(tokenizer) == make_tokenizer.SIZE == 2048


def test_encoding_adds_no_token_of_its_own(tokenizer: Any) -> None:
    assert tokenizer("")["input_ids"] == []
    assert tokenizer("好")["input_ids"] == tokenizer("好", add_special_tokens=False)["input_ids"]


def test_every_bundled_row_survives_a_round_trip_without_bytes(tokenizer: Any) -> None:
    texts = [text for row in TRAIN + VALID for text in row.values()]

    encoded = tokenizer(texts)["input_ids"]

    assert tokenizer.batch_decode(encoded) == [unicodedata.normalize("NFKC", t) for t in texts]
    assert min(min(ids) for ids in encoded) >= len(make_tokenizer.SPECIALS) + 256


@pytest.mark.parametrize("text", FOREIGN)
def test_text_that_the_data_lack_survives_a_round_trip(tokenizer: Any, text: str) -> None:
    encoded = tokenizer(text)["input_ids"]

    assert tokenizer.unk_token_id not in encoded
    assert tokenizer.decode(encoded) == unicodedata.normalize("NFKC", text)


def test_texts_that_teach_too_little_are_refused_with_the_numbers() -> None:
    with pytest.raises(SystemExit, match="entries and not 2048"):
        make_tokenizer.trained(["太少了"])
