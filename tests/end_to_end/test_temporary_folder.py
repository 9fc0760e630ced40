"""Commands under a TMPDIR that other programs cannot live with."""

import os
import subprocess
from pathlib import Path

import pytest

import profiles
from tests.support.commands import CHATLM, output_of
from tests.support.runs import rows_file


def test_two_processes_and_their_loaders_train_under_a_long_path_of_two_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun, gloo, loader processes and our own socket, each of which makes files there."""
    folder = tmp_path.joinpath(*["ü\n" + "d" * 60] * 3)
    folder.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(folder))
    rows_file(tmp_path / "rows.jsonl", 32)
    fast = profiles.load("fast")
    run = fast.run.model_copy(update={"loader_workers": 1})
    profiles.save(fast.model_copy(update={"run": run}), tmp_path / "own.toml")

    said = output_of(
        tmp_path, "train", "--profile", "own.toml", "--data", "rows.jsonl", "--device", "cpu",
        "--num-processes", "2", "--max-steps", "1", "--generate-rows", "0", "--plain",
    )  # fmt: skip

    assert "\n1 steps, 32 samples, " in said


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
