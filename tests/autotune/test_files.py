"""Files and folders that appear whole or not at all."""

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


def test_a_folder_is_removed_by_its_name_first(tmp_path: Path) -> None:
    """Also where a killed process left half of one under the hidden name."""
    for name in ("run", ".run"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()

    files.remove_folder(tmp_path / "run")

    assert list(tmp_path.iterdir()) == []


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
