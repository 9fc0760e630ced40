"""Runs `chatlm` as a user does, in a folder of its own."""

import io
import json
import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

import pytest

import cli

ROOT = Path(__file__).parents[2]
CHATLM = (sys.executable, "-P", "-m", "cli")
"""The command from the installed package, or from the clone by PYTHONPATH (see conftest)."""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The running command; its output is piped."""
    return subprocess.Popen(
        [*CHATLM, *arguments],
        cwd=folder,
        env=os.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def chatlm(
    folder: Path, *arguments: str, timeout: float = 300
) -> "subprocess.CompletedProcess[str]":
    """The finished command."""
    process = start(folder, *arguments)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.communicate(timeout=30)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def called(
    folder: Path, *arguments: str, encoding: str = "utf-8", to: TextIO | None = None
) -> "subprocess.CompletedProcess[str]":
    """The same command in this process, which has torch; its output stays in memory, or goes `to` a file."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
    with (
        chdir(folder),
        redirect_stdout(to or out),
        redirect_stderr(err),
        pytest.MonkeyPatch.context() as m,
    ):
        m.setattr(sys, "argv", ["chatlm", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    code = ended.value.code
    assert isinstance(code, int)
    said = (stream.buffer.getvalue().decode(encoding) for stream in (out, err))
    return subprocess.CompletedProcess(arguments, code, *said)


def output_of(folder: Path, *arguments: str, timeout: float = 300) -> str:
    """What the command printed; it must succeed."""
    done = chatlm(folder, *arguments, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


def two_processes(module: str, *arguments: str) -> str:
    """What this module prints on two processes under torchrun; it must succeed."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [sys.executable, "-P", *launcher, "-m", module, *arguments],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def plant_bombs(folder: Path) -> None:
    """Modules of our names that raise when they are imported, as the user's current folder may have."""
    bomb = "raise SystemExit('the wrong module was imported')\n"
    for name in ("trainer", "profiles"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(bomb)
    for name in ("autotune.py", "cli.py", "dashboard.py"):
        (folder / name).write_text(bomb)


def steps(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
