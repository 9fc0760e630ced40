"""Two signals within milliseconds, as a closed terminal and `timeout` send them, in each phase of each command."""

import json
import signal
import subprocess
from pathlib import Path

import pexpect
import pytest

import profiles
from autotune.events import ProbeStarted
from dashboard.event_log import read_events
from tests.support.command_toy import TOY
from tests.support.commands import CHATLM, start, steps
from tests.support.processes import each_within, still_running, wait_until, workers_of
from tests.support.runs import chosen, notices, rows_file, run

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
PAIRS = [(HUP, TERM), (TERM, HUP), (INT, TERM), (INT, INT), (TERM, TERM)]
TUNE = ("autotune", "--device", "cpu", "--vram-limit", "400MiB", *TOY, "--plain")
TRAIN = (
    "train", "--device", "cpu", "--dropout", "0", "--seed", "5", "--profile", "small",
    "--generate-rows", "0", "--max-steps", "12", "--micro-batch", "8", "--output-dir", "run",
)  # fmt: skip
nothing_hangs = each_within(300)
each_pair = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "+".join(n.name for n in pair))
Pair = tuple[signal.Signals, signal.Signals]


def end(process: "subprocess.Popen[str]", pair: Pair) -> tuple[int, str]:
    """Sends both at once; the exit code and what was said on standard error."""
    for number in pair:
        process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    return process.returncode, err


def probes(events: Path) -> int:
    """How many probes have begun."""
    if not events.exists():
        return 0
    return sum(isinstance(event, ProbeStarted) for _, event in read_events(events))


@each_pair
def test_two_signals_in_a_probe_keep_the_best_so_far(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one cuts neither the profile nor the end of the workers."""
    monkeypatch.setenv("CHATLM_TOY", json.dumps({"how": "hang", "at": 2}))
    process = start(tmp_path, *TUNE, "--events", "events.jsonl")
    assert wait_until(lambda: probes(tmp_path / "events.jsonl") == 2)
    workers = workers_of(process.pid)

    code, _ = end(process, pair)

    assert code == 130
    assert profiles.load(str(tmp_path / "profiles" / "tuned.toml")).interrupted
    assert still_running(workers) == []


@each_pair
def test_two_signals_while_a_worker_starts_end_it(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATLM_TOY", json.dumps({"how": "hang", "building": True}))
    process = start(tmp_path, *TUNE)
    assert wait_until(lambda: workers_of(process.pid) != [])
    workers = workers_of(process.pid)

    code, err = end(process, pair)

    assert (code, err) == (130, "chatlm: interrupted\n")
    assert still_running(workers) == []


def test_two_signals_in_a_run_save_a_checkpoint(tmp_path: Path) -> None:
    """The same run then resumes after the last step."""
    rows_file(tmp_path / "rows.jsonl", 400)
    process = start(tmp_path, *TRAIN, "--plain", "--data", "rows.jsonl")
    assert wait_until((tmp_path / "run" / "metrics.jsonl").exists)

    code, _ = end(process, (TERM, HUP))
    done = len(steps(tmp_path / "run"))
    resumed = chosen(
        "small", tmp_path / "run", data=(str(tmp_path / "rows.jsonl"),), dropout=0.0, seed=5,
        generate_rows=0, max_steps=12, micro_batch=8,
    )  # fmt: skip

    assert code == 130
    assert 1 <= done < 12
    assert f"resuming after step {done} of 12" in notices(run(resumed))


def test_a_closed_terminal_saves_a_checkpoint(tmp_path: Path) -> None:
    """The screen has nowhere to draw any more; the log tells the end."""
    rows_file(tmp_path / "rows.jsonl", 400)
    child = pexpect.spawn(
        CHATLM[0], [*CHATLM[1:], *TRAIN, "--data", "rows.jsonl"], cwd=tmp_path, timeout=300,
        dimensions=(30, 100), encoding="utf-8", codec_errors="replace",
    )  # fmt: skip
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        assert wait_until(
            lambda: not child.expect(pexpect.TIMEOUT, timeout=0.05) and metrics.exists()
        )

        child.ptyproc.fileobj.close()  # the kernel sends SIGHUP
        child.ptyproc.closed = True
        child.kill(TERM)
        child.wait()
    finally:
        child.close(force=True)
    (log,) = (tmp_path / "logs").glob("*.log")
    said = log.read_text(encoding="utf-8")

    assert child.exitstatus == 130
    assert "note    stopping after this step" in said
    assert "stopped step " in said
    assert "Traceback" not in said
    assert list((tmp_path / "run").glob("checkpoint-*"))


@each_pair
def test_two_signals_to_the_monitor_leave_the_terminal_as_it_was(pair: Pair) -> None:
    child = pexpect.spawn(
        CHATLM[0], [*CHATLM[1:], "monitor"], dimensions=(24, 80), timeout=300, encoding="utf-8",
    )  # fmt: skip
    said = []
    try:
        child.expect_exact("host RAM")
        said.append(child.before)
        for number in pair:
            child.kill(number)
        child.expect(pexpect.EOF)
        said.append(child.before)
    finally:
        child.close(force=True)
    written = "".join(said)

    assert child.exitstatus == 130
    assert written.count("\x1b[?1049h") == written.count("\x1b[?1049l") == 1
    assert written.rfind("\x1b[?25h") > written.rfind("\x1b[?25l")
    assert "Traceback" not in written


@pytest.mark.parametrize("pair", [(INT, INT), (INT, TERM), (TERM, HUP)], ids=str)
def test_signals_while_python_imports_print_no_traceback(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C says so; the others end it as they end any process."""
    (tmp_path / "typer.py").write_text(
        "import pathlib, time\npathlib.Path('importing').touch()\nwhile True: time.sleep(0.01)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    process = subprocess.Popen(
        [CHATLM[0], "-P", "-m", "chatlm", "--version"], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert wait_until((tmp_path / "importing").exists)

    code, err = end(process, pair)

    assert code in (130, -TERM)
    assert err in ("", "chatlm: interrupted\n")


def test_two_signals_while_rows_are_tokenised_end_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a traceback of a library's or a thread's."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("CHATLM_CACHE", str(cache))
    rows = ({"prompt": f"第 {i} 问，" + "问" * 40, "response": "答" * 40} for i in range(40_000))
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    process = start(tmp_path, "data", "rows.jsonl")
    assert wait_until(lambda: list(cache.glob(".partial-*/tokens.bin")) != [])

    code, err = end(process, (INT, TERM))

    assert (code, err) == (130, "chatlm: interrupted\n")
