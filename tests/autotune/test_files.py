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
