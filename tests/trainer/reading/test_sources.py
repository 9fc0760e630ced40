"""From names to files: folders of shards, patterns, saved data sets and those of the hub."""

import json
import os
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from autotune.errors import DataError
from tests.support.data_files import arrow_stream, delimited, json_lines, packed, pairs
from tests.support.processes import printed_by
from trainer.reading.readers import look, read_rows
from trainer.reading.sources import find_files


def names(files: tuple[str, ...]) -> list[str]:
    return [Path(file).name for file in files]


def error_of(name: str | Path) -> str:
    with pytest.raises(DataError) as caught:
        find_files([str(name)])
    return str(caught.value)


def shards(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        json_lines(folder, pairs(2), name=name)
    return folder


def saved(folder: Path, files: int = 2) -> Path:
    """As `Dataset.save_to_disk` leaves it: the order of the files is that of state.json."""
    folder.mkdir(parents=True)
    listed = []
    for number in reversed(range(files)):
        name = f"data-{number:05}-of-{files:05}.arrow"
        arrow_stream(folder, pairs(number + 1)).rename(folder / name)
        listed.append({"filename": name})
    (folder / "state.json").write_text(json.dumps({"_data_files": listed, "_split": "train"}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_files_keep_their_order_and_their_names(tmp_path: Path) -> None:
    folder = shards(tmp_path / "rows", "b.jsonl", "a.jsonl")
    given = (str(folder / "b.jsonl"), str(folder / "a.jsonl"))

    assert find_files(given) == given


def test_a_folder_gives_its_shards_by_their_numbers(tmp_path: Path) -> None:
    """Nothing that is hidden, or about the data."""
    folder = shards(tmp_path / "rows", "part-10.jsonl", "part-9.jsonl", ".part-8.jsonl", "_x.jsonl")
    for other in ("README.md", "LICENSE", "dataset_infos.json", "rows.txt"):
        (folder / other).write_text("{}")

    assert names(find_files([str(folder)])) == ["part-9.jsonl", "part-10.jsonl"]


def test_a_folder_may_hold_its_shards_in_a_folder(tmp_path: Path) -> None:
    """As data sets of the hub do."""
    shards(tmp_path / "set" / "data", "train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl")

    assert len(find_files([str(tmp_path / "set")])) == 2


def test_a_look_says_one_line_for_all_shards(tmp_path: Path) -> None:
    folder = shards(tmp_path / "rows", "a.jsonl", "b.jsonl")
    alike = look([str(folder)])
    packed(folder / "b.jsonl", "gzip").rename(tmp_path / "c.jsonl.gz")

    assert alike == [
        f"{folder} (2 files): JSON lines; prompt is the prompt, response the answer",
    ]
    assert len(look([str(folder), str(tmp_path / "c.jsonl.gz")])) == 2


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    assert error_of(tmp_path).startswith(f"folder {tmp_path} has no data files (*.parquet, ")


def test_a_folder_of_two_kinds_is_refused_with_a_pattern(tmp_path: Path) -> None:
    """A file and the same one compressed are two kinds, too."""
    folder = shards(tmp_path / "rows", "a.jsonl", "b.jsonl")
    packed(folder / "a.jsonl", "gzip")

    assert error_of(folder) == (
        f"folder {folder} holds several kinds or folders: {folder}/*.jsonl (2), {folder}/*.jsonl.gz (1); "
        f"choose, like '{folder}/*.jsonl'"
    )


def test_a_folder_of_folders_is_refused_with_a_pattern(tmp_path: Path) -> None:
    shards(tmp_path / "en", "a.jsonl")
    shards(tmp_path / "zh", "a.jsonl", "b.jsonl")

    assert error_of(tmp_path) == (
        f"folder {tmp_path} holds several kinds or folders: {tmp_path}/en/*.jsonl (1), "
        f"{tmp_path}/zh/*.jsonl (2); choose, like '{tmp_path}/zh/*.jsonl'"
    )


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (("train-1.jsonl", "test-1.jsonl"), "/*test*.jsonl (1), {}/*train*.jsonl (1)"),
        (("train.jsonl", "validation.jsonl"), "/*train*.jsonl (1), {}/*validation*.jsonl (1)"),
        (("rows.jsonl", "my_test.jsonl"), "/*test*.jsonl (1), {}/rows.jsonl (1)"),
        (("train1.jsonl", "test1.jsonl"), "/*test*.jsonl (1), {}/*train*.jsonl (1)"),
        (("Training set.jsonl", "testing.jsonl"), "/*Training*.jsonl (1), {}/*testing*.jsonl (1)"),
    ],
)
def test_a_folder_of_several_splits_is_refused_with_a_pattern(
    tmp_path: Path, files: tuple[str, ...], found: str
) -> None:
    """Who trains on the rows of an evaluation does not see it."""
    folder = shards(tmp_path / "rows", *files)

    message = error_of(folder)

    assert message.startswith(
        f"folder {folder} holds several splits: {folder}{found.format(folder)}; choose, like"
    )
    (pattern,) = shlex.split(message.rpartition("choose, like ")[2])
    assert len(find_files([pattern])) == 1


def test_a_pattern_in_an_error_finds_folders_of_any_name(tmp_path: Path) -> None:
    """Brackets are a pattern's own, and quotes the shell's."""
    folder = tmp_path / "it's [1]"
    shards(folder, "train.jsonl", "test.jsonl")

    (pattern,) = shlex.split(error_of(folder).rpartition("choose, like ")[2])

    assert names(find_files([pattern])) == ["train.jsonl"]


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    """Rows are read more than once: for a look, to count, to tokenise."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    assert error_of(pipe) == (
        f"{pipe} is a pipe or a device; write it into a file first: rows are read more than once"
    )
    for address in ("hf://datasets/a/b.parquet", "https://a.b/rows.jsonl?download=true"):
        what = "is an address, not a file; download it, and give the file"
        assert error_of(address) == f"{address} {what}"


def test_a_pattern_gives_the_files_that_match(tmp_path: Path) -> None:
    shards(tmp_path, "part-10.jsonl", "part-2.jsonl", "other.jsonl")

    assert names(find_files([f"{tmp_path}/part-*.jsonl"])) == ["part-2.jsonl", "part-10.jsonl"]
    assert error_of(f"{tmp_path}/none-*") == (
        f"no file matches {tmp_path}/none-*; check it with ls, and quote it"
    )


def test_a_saved_data_set_is_read_in_its_order(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set")

    files = find_files([str(folder)])

    assert names(files) == ["data-00001-of-00002.arrow", "data-00000-of-00002.arrow"]
    assert len([row for file in files for row in read_rows(file)]) == 3
    assert look([str(folder)])[0].startswith(f"{folder} (2 files): Arrow; prompt is the prompt")


def test_saved_splits_give_the_one_to_train_on(tmp_path: Path) -> None:
    saved(tmp_path / "set" / "train", 1)
    saved(tmp_path / "set" / "test")
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    saved(tmp_path / "eval" / "a")
    (tmp_path / "eval" / "dataset_dict.json").write_text('{"splits": ["a", "b"]}')

    assert names(find_files([str(tmp_path / "set")])) == ["data-00000-of-00001.arrow"]
    assert error_of(tmp_path / "eval") == (
        f"{tmp_path}/eval holds the splits a, b, and none is train; give one of them, like "
        f"{tmp_path}/eval/a"
    )


def test_a_name_that_is_nothing_is_refused(tmp_path: Path) -> None:
    assert error_of("gone.jsonl").startswith("data file gone.jsonl is not there; give Parquet")
    assert error_of(f"{tmp_path}/gone").startswith(f"data file {tmp_path}/gone is not there; ")
    assert error_of("x" * 300).startswith(f"cannot read {'x' * 300}: File name too long")


def test_a_hub_id_needs_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)

    assert error_of("owner/name") == (
        "data file owner/name is not there; for a data set of the hub: pip install datasets"
    )


def test_a_look_at_files_loads_neither_torch_nor_datasets(tmp_path: Path) -> None:
    """The supervisor looks, and answers at once."""
    path = packed(delimited(tmp_path, pairs(1)), "gzip")
    script = (
        "import sys\nfrom trainer.reading.readers import look\n"
        f"look([{str(path)!r}])\n"
        "print({'torch', 'transformers', 'datasets', 'pandas'} & set(sys.modules))"
    )

    assert printed_by(script) == "set()\n"


def test_a_hub_data_set_is_read_from_the_cache_of_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its training split."""
    file = arrow_stream(tmp_path, pairs(3))
    asked: list[tuple[str, str]] = []

    def load_dataset(name: str, *, split: str) -> Any:
        asked.append((name, split))
        if name == "owner/gone":
            raise ConnectionError("Couldn't reach the Hub\nand more")
        return SimpleNamespace(cache_files=[{"filename": str(file)}])

    library = ModuleType("datasets")
    library.__dict__["load_dataset"] = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", library)

    assert find_files(["owner/name"]) == (str(file),)
    assert asked == [("owner/name", "train")]
    assert look(["owner/name"]) == [
        "owner/name: Arrow; prompt is the prompt, response the answer",
    ]
    assert error_of("owner/gone") == (
        "owner/gone is not a file, and `datasets` does not give it: Couldn't reach the Hub; check the "
        "name and the network, or give files"
    )


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("dataset_dict.json", b'{"splits": 5}', "it names no files"),
        ("dataset_dict.json", b'{"splits": [5]}', "it names no files"),
        ("dataset_dict.json", b"[]", "it holds list '[]'"),
        ("dataset_dict.json", b"[" * 90000, "maximum recursion depth exceeded"),
        ("dataset_dict.json", b'{"splits": "\xff"}', "'utf-8' codec can't decode byte 0xff"),
        ("state.json", b'{"_data_files": {}}', "it names no files"),
        ("state.json", b'{"_data_files": ["a"]}', "it names no files"),
        ("state.json", b'{"_data_files": [{"filename": 5}]}', "it names no files"),
        ("state.json", b'{"_data_files": [', "Expecting value"),
    ],
)
def test_a_damaged_list_of_files_is_named(
    tmp_path: Path, name: str, content: bytes, what: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    message = error_of(tmp_path)

    assert message.startswith(f"{path} is damaged: {what}")
    assert message.endswith("; save the data set again")


def test_digits_of_other_kinds_are_no_numbers_of_shards(tmp_path: Path) -> None:
    """`²` is a digit to Python, and no number."""
    folder = shards(tmp_path / "set", "1²2.jsonl", "1²10.jsonl")

    assert names(find_files([str(folder)])) == ["1²2.jsonl", "1²10.jsonl"]


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/hostname", "..", ""])
def test_a_saved_data_set_names_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    """It may be from someone else: what it names would be tokenised."""
    (tmp_path / "secret.arrow").touch()
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))

    with pytest.raises(DataError) as caught:
        find_files([str(folder)])

    assert str(caught.value) == (
        f"{folder / 'state.json'} names {name!r}, which is outside its folder; save the data set again"
    )
