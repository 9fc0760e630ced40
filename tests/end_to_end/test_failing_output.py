"""Outputs that cannot be written: one line says so, and a run goes on without its screen or its log."""

import re
import resource
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.command_toy import TOY
from tests.support.commands import CHATLM, called
from tests.support.processes import each_within

FULL = "chatlm: cannot write to standard output: No space left on device\n"
CLOSED = "chatlm: cannot write to standard output: Bad file descriptor\n"
TUNE = ("autotune", "--device", "cpu", "--vram-limit", "400MiB", "--max-batch", "2", *TOY)
SHORT = [
    ("--help",), ("train", "--help"), ("--version",), ("profiles", "list"), ("profiles", "show", "fast"),
    ("monitor", "--once"), ("monitor", "--once", "--json"),
]  # fmt: skip
nothing_hangs = each_within(300)
each_command = pytest.mark.parametrize("command", SHORT, ids=" ".join)
each_writer = pytest.mark.parametrize("command", SHORT[1::2], ids=" ".join)
"""Help, a list and a reading: the commands between them write in the same ways."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def chatlm(*arguments: str, to: str, limit: int | None = None) -> tuple[int, str, str]:
    """The exit code and both outputs of the command with this redirection of a shell."""

    def set_limit() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        ["bash", "-c", f"{shlex.join([*CHATLM, *arguments])} {to}"],
        capture_output=True, text=True, timeout=300, check=False, preexec_fn=set_limit,
    )  # fmt: skip
    assert "Traceback" not in done.stderr + done.stdout
    assert "Exception ignored" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@each_command
def test_a_full_disk_is_said_in_one_line(command: tuple[str, ...]) -> None:
    assert chatlm(*command, to=">/dev/full") == (1, "", FULL)


def test_a_full_disk_is_said_after_rows_were_tokenised(folder: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = called(folder, "data", "rows.jsonl", to=full)

    assert (done.returncode, done.stderr) == (1, FULL)


@each_writer
def test_a_closed_output_is_said_in_one_line(command: tuple[str, ...]) -> None:
    assert chatlm(*command, to=">&-") == (1, "", CLOSED)


@each_writer
def test_where_nothing_can_be_written_nothing_is_said(command: tuple[str, ...]) -> None:
    """The exit code alone tells it."""
    assert chatlm(*command, to=">/dev/full 2>/dev/full") == (1, "", "")
    assert chatlm(*command, to="<&- >&- 2>&-") == (1, "", "")


@each_writer
def test_a_reader_that_leaves_is_told_nothing(command: tuple[str, ...]) -> None:
    """As `head` does."""
    code, _, err = chatlm(*command, to='| true; exit "${PIPESTATUS[0]}"')

    assert (code in (0, 1), err) == (True, "")


@pytest.mark.parametrize("to", [">/dev/full", "2>/dev/full", ">&-", "2>&-", "| head -1"])
@pytest.mark.parametrize("options", [("--plain",), ("--json",)], ids=str)
def test_a_tuning_goes_on_without_its_screen(
    to: str, options: tuple[str, ...], folder: Path
) -> None:
    """Its profile is written. A result that nobody gets is a failure."""
    code, out, err = chatlm(*TUNE, *options, to=to)
    (log,) = (folder / "logs").glob("*.log")
    is_lost = to in (">/dev/full", ">&-")

    assert code == int(is_lost)
    assert (folder / "profiles" / "tuned.toml").exists()
    assert "answer  2" in log.read_text(encoding="utf-8")
    assert (err.splitlines()[-1:] == [(FULL if "full" in to else CLOSED).strip()]) is is_lost
    assert (out == "") is is_lost


def test_a_screen_that_fails_is_told_in_the_log_once(folder: Path) -> None:
    chatlm(*TUNE, "--plain", to=">/dev/full")
    (log,) = (folder / "logs").glob("*.log")

    said = log.read_text(encoding="utf-8")
    assert said.count("going on without it") == 1
    assert (
        "note    cannot write to standard output: No space left on device; going on without it"
        in said
    )


@pytest.mark.parametrize(
    "command", [TUNE, ("train", "--profile", "fast", "--device", "cpu", "--output-dir", "run")]
)
def test_a_folder_that_takes_no_byte_is_refused_at_once(command: tuple[str, ...]) -> None:
    """A file that may not grow fails as a full disk does; nor is there a folder for temporary files then."""
    code, out, err = chatlm(*command, "--plain", to="", limit=0)

    assert (code, out) == (1, "")
    assert re.fullmatch(
        r"chatlm: cannot make a temporary file: No usable .*; set TMPDIR to .*\n", err
    )


def test_a_log_that_is_full_is_told_once_on_the_screen_and_the_tuning_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has room for the profile, and not for what the workers print into the log."""
    toy = "import os, sys\nsys.stderr.write('x' * 20_000)\nfrom tests.support.command_toy import build\n"
    (folder / "loud_toy.py").write_text(toy)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    loud = [part if "command_toy" not in part else "loud_toy:build" for part in TUNE]

    code, out, err = chatlm(*loud, "--plain", to="", limit=12_000)
    (log,) = (folder / "logs").glob("*.log")

    assert (code, err) == (0, "")
    assert out.count("going on without it") == 1
    assert f"note    cannot write to logs/{log.name}: File too large; going on without it" in out
    assert "answer  2" in out
    assert log.stat().st_size == 12_000
    assert (folder / "profiles" / "tuned.toml").exists()
