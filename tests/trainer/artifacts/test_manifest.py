"""A checkpoint's files are what was written, byte for byte, those in its folders too."""

from pathlib import Path

import pytest

from trainer.artifacts.manifest import Damaged, check_manifest, write_manifest


def test_a_folder_in_a_checkpoint_is_watched_too(tmp_path: Path) -> None:
    """A tokenizer with several chat templates writes one: it must not stop the checkpoint."""
    template = tmp_path / "additional_chat_templates" / "tool_use.jinja"
    template.parent.mkdir()
    template.write_text("as it was")
    write_manifest(tmp_path)
    check_manifest(tmp_path, ())

    template.write_text("as it is.")

    with pytest.raises(Damaged, match="tool_use"):
        check_manifest(tmp_path, ())
