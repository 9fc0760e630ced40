"""A group of processes: how it is started, what its end tells, that none is left."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from autotune.cause import Cause
from autotune.devices.host import HostMeter
from autotune.errors import OutputError
from autotune.workers.group import WorkerGroup
from autotune.workers.messages import Beat, Build, FromProbe, encode
from tests.support.processes import is_running, wait_until
from tests.support.toy_workload import ROOT

CONNECT = """
import json, os, socket, sys, time
def connect():
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ["CHATLM_SOCKET"])
    return connection
def hello(connection, rank, pid):
    connection.sendall(json.dumps({"type": "hello", "rank": rank, "pid": pid}).encode() + b"\\n")
"""


@contextmanager
def workers_that(run: str, folder: Path) -> Iterator[WorkerGroup[FromProbe]]:
    """One process that runs this code, which can `connect()` and say `hello(connection, rank, pid)`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CONNECT + run]
    with WorkerGroup[FromProbe](
        command,
        messages=FromProbe,
        environment=environment,
        log_path=folder / "log",
        host=HostMeter(),
    ) as workers:
        yield workers


def greet(workers: WorkerGroup[FromProbe]) -> None:
    """Waits for a rank's hello."""
    batches = workers.watch(0.05)
    assert wait_until(lambda: next(batches) == [] and bool(workers.pids)), workers.log_tail()


def test_every_rank_is_greeted_once(tmp_path: Path) -> None:
    """Also when two say hello at once."""
    said, greeting = tmp_path / "said", Build(workload="a:b", settings={})
    run = (
        "first, second = connect(), connect(); hello(first, 0, 2**30); hello(second, 1, 2**30)\n"
        f"open({str(said)!r}, 'wb').write(first.recv(999) + second.recv(999))"
    )
    with workers_that(run, tmp_path) as workers:
        assert list(workers.watch(0.2, greeting))[-1] == []

    assert said.read_bytes() == encode(greeting) * 2


def test_the_log_has_what_was_printed_since_the_start(tmp_path: Path) -> None:
    """One log serves many groups; the end of an earlier one is no evidence."""
    (tmp_path / "log").write_text("exitcode : -9\n")
    with workers_that("print('out'); print('err', file=sys.stderr); sys.exit(3)", tmp_path) as w:
        code = w.exit_code()
        printed = w.log_tail()

    assert code == 3
    assert sorted(printed.splitlines()) == ["err", "out"]
    assert "exitcode : -9" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("printed", "code"),
    [
        ("exitcode  : -11 (pid: 7) Signal 11 (SIGSEGV)", -signal.SIGSEGV),
        ("exitcode  : 1 (pid: 8)\nexitcode  : -9 (pid: 7)", -signal.SIGKILL),
        ("exitcode  : 1 (pid: 8)\nexitcode  : -11 (pid: 7)", -signal.SIGSEGV),
        ("exitcode  : -15 (pid: 8)\nexitcode  : -4 (pid: 7)", -signal.SIGILL),
        ("exitcode  : -15 (pid: 8)\nexitcode  : 3 (pid: 7)", 3),
        ("exitcode  : -15 (pid: 8)", -signal.SIGTERM),
        ("exitcode  : 137 (pid: 8)", -signal.SIGKILL),
        ("exitcode  : 139 (pid: 8)", -signal.SIGSEGV),
        ("exitcode  : 130 (pid: 8)", 130),
        (f"exitcode  : {'9' * 5000}", 1),
        ("failed (exitcode: 3) local_rank: 0 (pid: 8) of binary", 3),
        ("no report", 1),
    ],
)
def test_a_launchers_report_tells_how_its_worker_ended(
    printed: str, code: int, tmp_path: Path
) -> None:
    """torchrun exits 1 whatever the signal; of several ranks the killed one is the cause."""
    with workers_that(f"print({printed!r}); sys.exit(1)", tmp_path) as workers:
        assert workers.exit_code() == code


@pytest.mark.parametrize("end", ["sys.exit(1)", "a.close(); time.sleep(60)"], ids=["exit", "gone"])
def test_watching_ends_after_the_last_message(end: str, tmp_path: Path) -> None:
    """Both when the launcher has ended and when a rank has closed its connection."""
    run = (
        "a = connect(); hello(a, 0, 2**30); "
        f'a.sendall(b\'{{"type": "beat", "step": 1}}\\n\'); {end}'
    )
    with workers_that(run, tmp_path) as workers:
        batches = list(workers.watch(0.2))

    assert [message for batch in batches for message in batch] == [(0, Beat(step=1))]


@pytest.mark.parametrize(
    ("end", "cause", "detail"),
    [
        ("sys.exit(3)", Cause.DIED, "died (exit code 3)"),
        ("os.kill(os.getpid(), 11)", Cause.DIED, "died (SIGSEGV)"),
        ("os.kill(os.getpid(), 9)", Cause.KILLED, "was killed (SIGKILL)"),
        ("os._exit(137)", Cause.KILLED, "was killed (SIGKILL)"),  # as a shell says it
        ("os._exit(139)", Cause.DIED, "died (SIGSEGV)"),
        ("os._exit(130)", Cause.DIED, "died (exit code 130)"),
        ("os.kill(os.getpid(), 35)", Cause.DIED, "died (signal 35)"),  # it has no name
    ],
)
def test_an_end_without_a_message_is_classified(
    end: str, cause: Cause, detail: str, tmp_path: Path
) -> None:
    """By the exit code or the signal."""
    with workers_that(end, tmp_path) as workers:
        failure = workers.how_it_ended()

    assert (failure.cause, failure.detail) == (cause, detail)


def test_a_process_of_the_same_number_is_not_killed(tmp_path: Path) -> None:
    """The kernel gives numbers out again; a stranger has not our socket in its environment."""
    with subprocess.Popen(["sleep", "60"]) as stranger:
        run = f"a = connect(); hello(a, 0, {stranger.pid}); a.recv(1)"
        try:
            with workers_that(run, tmp_path) as workers:
                greet(workers)
                resident = workers.resident()
            is_alive = stranger.poll() is None
        finally:
            stranger.kill()

    assert resident[0] > 0
    assert is_alive


def test_a_rank_may_say_hello_while_the_meter_asks_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meter has a thread of its own."""
    with workers_that("", tmp_path) as workers:

        def resident_as_another_comes(pid: int) -> int:
            workers.pids[pid] = 2**30  # no such process
            return pid

        monkeypatch.setattr("autotune.workers.group.resident", resident_as_another_comes)
        workers.pids = {0: 2**30 + 1}
        resident = workers.resident()

    assert resident == {0: 2**30 + 1}


def test_a_worker_below_the_launcher_is_gone_when_the_group_is_closed(tmp_path: Path) -> None:
    """It hears nothing, and the launcher does not look after it."""
    run = (
        "import subprocess; child = subprocess.Popen(['sleep', '60'], start_new_session=True); "
        "a = connect(); hello(a, 0, child.pid); a.recv(1)"
    )
    with workers_that(run, tmp_path) as workers:
        greet(workers)
        child = psutil.Process(workers.pids[0])

    # its memory is free before the kernel calls it ended
    assert wait_until(lambda: not is_running(child))


def test_a_group_that_nobody_has_heard_of_yet_is_ended_too(tmp_path: Path) -> None:
    """Ctrl-C while the workers import torch."""
    with workers_that("time.sleep(60)", tmp_path) as workers:
        assert not workers.ended()

    assert workers.ended()
    assert workers.exit_code() == -signal.SIGTERM


def test_a_log_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """Before anything is started."""
    (tmp_path / "log").mkdir()

    with pytest.raises(OutputError) as caught, workers_that("", tmp_path):
        pass

    assert str(caught.value) == f"cannot write the log {tmp_path / 'log'}: Is a directory"


def test_a_log_without_room_stops_no_worker(tmp_path: Path) -> None:
    """Its heading and what they print are dropped, also when it is closed."""
    (tmp_path / "log").write_text("before\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (4, hard)
    )  # a file that may not grow fails as a full disk does
    try:
        with workers_that("", tmp_path) as workers:
            for _ in workers.watch(0.05):
                pass
            code = workers.exit_code()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert code == 0
    assert (tmp_path / "log").read_text() == "before\n"


def test_a_log_is_not_what_a_link_points_to(tmp_path: Path) -> None:
    """Another user of a shared folder may have put it there."""
    (tmp_path / "log").symlink_to("precious")

    with pytest.raises(OutputError, match="cannot write the log"), workers_that("", tmp_path):
        pass

    assert not (tmp_path / "precious").exists()


def test_a_group_that_cannot_be_started_leaves_nothing_open(tmp_path: Path) -> None:
    open_before = psutil.Process().num_fds()

    with pytest.raises(FileNotFoundError):
        WorkerGroup[FromProbe](
            [str(tmp_path / "no-such-launcher")],
            messages=FromProbe,
            environment={},
            log_path=tmp_path / "log",
            host=HostMeter(),
        )

    assert psutil.Process().num_fds() == open_before
