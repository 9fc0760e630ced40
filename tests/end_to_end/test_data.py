"""`chatlm data` as a user runs it: what it shows, what it refuses, and that training finds its tokens."""

import json
import os
from pathlib import Path

import pytest

from tests.support.commands import called, chatlm, output_of
from tests.support.data_files import json_lines, pairs
from tests.support.runs import chosen, ended, run

ALPACA = [{"instruction": "add", "input": "1 1", "output": "2"}] * 3
NO_TORCH = "raise SystemExit('torch was loaded')\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHATLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "user").mkdir()
    return tmp_path / "user"


def test_it_prints_a_page_and_one_document(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pipe, without colours; training then opens the tokens that it made."""
    json_lines(folder, ALPACA)

    said = output_of(folder, "data", "rows.jsonl")
    document = json.loads(called(folder, "data", "rows.jsonl", "--row", "2", "--json").stdout)
    made = sorted((folder.parent / "cache").iterdir())
    monkeypatch.chdir(folder)
    trained = run(chosen("fast", Path("run"), data=("rows.jsonl",), max_steps=1, generate_rows=0))

    assert said.startswith(
        "rows.jsonl: JSON lines; instruction and input are the prompt, output the answer\n"
        "3 rows for chatlm-tiny (seq2seq, no chat template): "
    )
    assert "⟦2│[EOS]⟧" in said
    assert "\x1b" not in said
    assert [row["row"] for row in document["shown"]] == [2]
    assert ended(trained).result["steps"] == 1
    assert sorted((folder.parent / "cache").iterdir()) == made


@pytest.mark.parametrize(
    "command", [["data"], ["train", "--profile", "small", "--data"], ["autotune", "--data"]]
)
def test_a_wrong_column_is_told_before_torch_is_loaded(
    folder: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a second, with the columns that are there."""
    json_lines(folder, [{"ask": "a", "reply": "b"}])
    bombs = folder.parent / "bombs"
    bombs.mkdir()
    (bombs / "torch.py").write_text(NO_TORCH)
    monkeypatch.setenv("PYTHONPATH", f"{bombs}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    done = chatlm(folder, *command, "rows.jsonl")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "chatlm: rows.jsonl has no columns that are known (found: ask, reply); name them with "
        "--prompt-column and --response-column, or --messages-column\n"
    )


@pytest.mark.parametrize("row", ["3", "9" * 24])
def test_a_row_that_is_not_there_is_refused(folder: Path, row: str) -> None:
    json_lines(folder, pairs(2))

    done = called(folder, "data", "rows.jsonl", "--row", row)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"chatlm: there is no row {row}; give --row a number of a row, counted from 1"
    )


def test_text_that_the_terminal_cannot_write_is_escaped(folder: Path) -> None:
    json_lines(folder, pairs(1))

    said = called(folder, "data", "rows.jsonl", encoding="ascii").stdout

    assert "\\u7b54" in said
    assert "#####" in said


def test_a_files_name_does_not_steer_the_terminal(folder: Path) -> None:
    """Nor in an error."""
    json_lines(folder, pairs(1), "a\x1b[31m.jsonl")
    json_lines(folder, [{"a": "b"}], "b\x1b[31m.jsonl")

    said = called(folder, "data", "a\x1b[31m.jsonl").stdout
    done = called(folder, "data", "b\x1b[31m.jsonl")

    assert said.startswith("'a\\x1b[31m.jsonl': JSON lines; ")
    assert done.stderr.startswith("chatlm: b\\x1b[31m.jsonl has no columns")
