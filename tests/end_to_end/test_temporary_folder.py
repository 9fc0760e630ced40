"""Commands without any folder for temporary files; `test_families` has an odd one."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import CHATLM


@pytest.mark.parametrize("command", ["train", "autotune"])
def test_without_any_temporary_folder_a_command_says_what_to_set(
    tmp_path: Path, command: str
) -> None:
    """Before anything starts. Here no file may have a byte, as on a full disk."""
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *CHATLM, command],
        cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=300,
    )  # fmt: skip

    assert done.returncode == 1
    assert done.stderr.startswith(
        "chatlm: cannot make a temporary file: No usable temporary directory found in ["
    )
    assert done.stderr.endswith(
        "; set TMPDIR to a folder that you can write to and that has space\n"
    )
