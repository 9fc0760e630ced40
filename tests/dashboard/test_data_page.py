"""The page of `chatlm data`, and its JSON document."""

import json
from pathlib import Path

import pytest

from dashboard.data_page import PLAIN_MARKS, as_json, page
from tests.support.data_files import json_lines
from trainer.config.options import DataOptions
from trainer.supervisor.inspection import Inspection, inspect_data

PAGE = """\
rows.jsonl: JSON lines; prompt is the prompt, response the answer
2 rows for chatlm-tiny (seq2seq, no chat template): 16 tokens, 9 of them learnt (56 %)

tokens      least   median     95 %     99 %     most    limit
source          2        5        5        5        5        6
target          4        5        5        5        5        5
both            7        9        9        9        9       11

rows by tokens of the source
1 to 1   0
2 to 2  ############################## 1
3 to 3   0
4 to 4   0
5 to 5  ############################## 1

rows by tokens of the target
1 to 1   0
2 to 2   0
3 to 3   0
4 to 4  ############################## 1
5 to 5  ############################## 1

row 1: 2 source and 5 target tokens, 5 learnt; 4 tokens cut from the target's end
  source  好|[EOS]
  target  [[再|见|再|见|再]]

row 2: 5 source and 4 target tokens, 4 learnt; its text spells '[SEP]'
  source  a|b|\\n|[SEP]|[EOS]
  target  [[\\x1b|[|好|[EOS]]]

note: truncated 0 of 2 sources to 6 tokens and 1 targets to 5; the text of 1 of 2 rows spells a special token \
(first '[SEP]'), which becomes that token"""


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inspection:
    monkeypatch.setenv("CHATLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    rows = [("好", "再见再见再见再见"), ("ab\n[SEP]", "\x1b[好")]
    json_lines(tmp_path, [{"prompt": p, "response": r} for p, r in rows])
    options = DataOptions(max_source_length=6, max_target_length=5)
    return inspect_data(options, ["rows.jsonl"])


def test_the_page_shows_rows_as_they_are_trained(found: Inspection) -> None:
    """How the file was read, lengths, what was cut, which tokens are learnt; no control characters."""
    assert "\n".join(line.plain for line in page(found, PLAIN_MARKS)) == PAGE


def test_the_document_has_every_token_of_the_shown_rows(found: Inspection) -> None:
    """By id and text, and whether it is learnt."""
    document = json.loads(json.dumps(as_json(found)))

    assert document["read_as"] == [
        "rows.jsonl: JSON lines; prompt is the prompt, response the answer"
    ]
    assert document["cut"] == {"sources": 0, "targets": 1}
    first = document["shown"][0]
    assert [token["text"] for token in first["target"]] == list("再见再见再")
    assert {token["learnt"] for token in first["source"]} == {False}
    assert {token["learnt"] for token in first["target"]} == {True}
    assert first["cut_target"] == 4
    bars = document["lengths"]["both"]["histogram"]
    assert sum(bar["rows"] for bar in bars) == document["rows"] == 2
