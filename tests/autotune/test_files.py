"""Files and folders that appear whole or not at all."""

import os
from pathlib import Path

import pytest

from autotune import files


def test_a_folder_appears_when_it_is_filled(tmp_path: Path) -> None:
    """Until then nothing has its name; what a killed process had begun is not in it."""
    (tmp_path / ".run").mkdir()
    (tmp_path / ".run" / "old").touch()

    with files.appearing(tmp_path / "run") as folder:
        (folder / "file").write_text("all")
        seen = (tmp_path / "run").exists()

    assert not seen
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]


def test_a_folder_that_failed_leaves_nothing(tmp_path: Path) -> None:
    """Not even where the reason is Ctrl-C."""

    def fail() -> None:
        with files.appearing(tmp_path / "run") as folder:
            (folder / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()

    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced(tmp_path: Path) -> None:
    """And nothing is left beside it."""
    (tmp_path / "run.json").write_text("old")

    files.write_text(tmp_path / "run.json", "new")

    assert (tmp_path / "run.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    "kind", ["file", "folder", "link to a folder", "link to a file", "dangling"]
)
def test_only_what_has_the_name_is_removed(tmp_path: Path, kind: str) -> None:
    """The target of a link stays."""
    victim, path = tmp_path / "victim", tmp_path / "path"
    victim.mkdir()
    (victim / "file").write_text("precious")
    match kind:
        case "file":
            path.touch()
        case "folder":
            path.mkdir()
            (path / "link").symlink_to(victim)
        case "link to a folder":
            path.symlink_to(victim)
        case "link to a file":
            path.symlink_to(victim / "file")
        case "dangling":
            path.symlink_to(tmp_path / "nothing")

    files.remove(path)
    files.remove(path)

    assert [entry.name for entry in tmp_path.iterdir()] == ["victim"]
    assert (victim / "file").read_text() == "precious"


def test_a_link_in_the_place_of_a_file_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    """Also where somebody foresaw the name of the temporary file."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "run.json").symlink_to(victim)
    (tmp_path / f".run.json.{os.getpid()}.tmp").symlink_to(victim)

    files.write_text(tmp_path / "run.json", "new")

    assert victim.read_text() == "precious"
    assert not (tmp_path / "run.json").is_symlink()
    assert (tmp_path / "run.json").read_text() == "new"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("link", "symbolic links"),
        ("folder", "no plain file"),
        ("pipe", "no plain file"),
        ("missing", "No such file"),
    ],
)
def test_only_a_plain_file_is_opened(tmp_path: Path, kind: str, reason: str) -> None:
    """A pipe is not waited for."""
    path = tmp_path / "path"
    match kind:
        case "link":
            path.symlink_to(__file__)
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)

    with pytest.raises(OSError, match=reason):
        files.open_plain(path)


def test_a_file_that_is_too_large_for_a_description_is_not_read(tmp_path: Path) -> None:
    """One of 2 TiB that takes no space on the disk."""
    with (tmp_path / "run.json").open("wb") as file:
        file.truncate(2**41)

    with pytest.raises(OSError, match="it has more than 64 MiB"):
        files.read_small(tmp_path / "run.json")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a", True), ("a/b.json", True), ("..", False), ("", False), (".", False), ("/a", False),
     ("//a", False), ("a/../../b", False), ("a\0b", False), ("\ud800", False), ("..a", True)],
)  # fmt: skip
def test_a_name_is_inside_or_leads_out(name: str, expected: bool) -> None:
    assert files.is_inside(name) is expected


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "rows-*.jsonl", "./rows.jsonl", "sub/../rows.jsonl"]
)
def test_what_a_name_finds_has_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A pattern stays one."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "rows-1.jsonl").touch()
    monkeypatch.chdir(tmp_path)

    absolute = files.absolute(name)

    assert absolute == str(tmp_path / Path(name).name)
    assert files.absolute(absolute) == absolute


@pytest.mark.parametrize("name", ["owner/name", "gone.jsonl", "none-*", "", "x" * 300])
def test_a_name_that_finds_nothing_stays_as_it_is(name: str, tmp_path: Path) -> None:
    """It may be a hub id, or is refused by who reads it."""
    assert files.absolute(name) == name
    assert files.find_beside(name, tmp_path) == name


def test_the_current_folder_comes_before_the_files_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, name in (("here", "a"), ("beside", "a"), ("beside", "b")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).touch()
    monkeypatch.chdir(tmp_path / "here")

    assert files.find_beside("a", tmp_path / "beside") == "a"
    assert files.find_beside("b", tmp_path / "beside") == str(tmp_path / "beside" / "b")
    assert files.find_beside("b", Path("../beside")) == str(tmp_path / "here" / "../beside" / "b")
