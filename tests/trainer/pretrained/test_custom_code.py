"""A maker's code files beside an export: which are copied, and that none leads out of the folder."""

import json
from pathlib import Path

import pytest

from tests.support.run_folders import contents
from trainer.pretrained.custom_code import complete_code


def export_of(folder: Path, base: Path, reference: object) -> dict[str, object]:
    """The configuration in the export of a model whose maker's names that code."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": reference}}))
    complete_code(folder, base)
    found: dict[str, object] = json.loads((folder / "config.json").read_text())
    return found


def test_code_is_copied_with_what_it_imports(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "mine.py").write_text("from .part import x\n")
    (base / "part.py").write_text("x = 1\n")

    config = export_of(tmp_path / "run", base, "mine.Config")

    assert config == {"auto_map": {"AutoConfig": "mine.Config"}}
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "config.json", "mine.py", "part.py",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "reference",
    ["../base/mine.Config", "x/../../base/mine.Config", "/etc/mine.Config", "..Config", "gone.Config",
     "\0.Config", "\ud800.Config", 7, ["../base/mine.Config", None], [[7]]],
)  # fmt: skip
def test_code_that_leads_out_of_the_folder_is_not_copied(tmp_path: Path, reference: object) -> None:
    """Nor is anything written beside the export."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "mine.py").write_text("x = 1\n")
    before = contents(tmp_path)

    export_of(tmp_path / "run", base, reference)

    assert not list((tmp_path / "run").rglob("*.py"))
    after = contents(tmp_path)
    del after[str(tmp_path / "run" / "config.json")]
    assert after == before


@pytest.mark.parametrize("text", [b"print 'Python 2'", b"\0", b"\xff\xfe", b"(" * 5000])
def test_code_that_this_python_cannot_read_is_copied_as_it_is(tmp_path: Path, text: bytes) -> None:
    """An export after hours of training does not fail for it."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "mine.py").write_bytes(text)

    export_of(tmp_path / "run", base, "mine.Config")

    assert (tmp_path / "run" / "mine.py").read_bytes() == text
