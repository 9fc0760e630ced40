"""The supervisor's end and a worker's end of the wire, the latter in a process of its own."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from autotune.cause import Cause
from autotune.errors import WorkerError
from autotune.readings import Held, Report
from autotune.workers.channel import SOCKET_VARIABLE, Hub, Wire
from autotune.workers.messages import (
    Beat,
    Build,
    DataWait,
    Failed,
    FromProbe,
    Hello,
    MeasureDataWait,
    MeasureMemoryFractions,
    MemoryFractions,
    Message,
    Probe,
    Ready,
    ToProbe,
    decoder,
    encode,
)
from tests.support.processes import printed_by, wait_until
from tests.support.toy_workload import ROOT

WORKER = """
import sys
from autotune.workers.channel import Wire
from autotune.workers.messages import Failed, MeasureMemoryFractions, MemoryFractions, ToProbe
wire = Wire.from_environment(ToProbe)
for _ in range(int(sys.argv[1])):
    wire.send(Failed(cause="crashed", text="x" * 1000))
print("sent", flush=True)
while isinstance(request := wire.receive(), MeasureMemoryFractions):
    wire.send(MemoryFractions(fractions=request.sizes))
"""


@pytest.fixture
def hub() -> Iterator[Hub[FromProbe]]:
    hub = Hub[FromProbe](FromProbe)
    yield hub
    hub.close()


@contextmanager
def worker_of(hub: Hub[FromProbe], beats: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """A process with a wire to the hub that sends so many beats, and then echoes."""
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(beats)],
        cwd=ROOT,
        env={**os.environ, SOCKET_VARIABLE: hub.path},
        stdout=subprocess.PIPE,
    )
    with worker:
        try:
            yield worker
        finally:
            worker.kill()


def connect(hub: Hub[FromProbe], rank: int) -> socket.socket:
    """A worker's end without the worker: it has said hello."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(hub.path)
    connection.sendall(encode(Hello(rank=rank, pid=1)))
    return connection


def receive(hub: Hub[FromProbe], count: int) -> list[tuple[int, FromProbe]]:
    """The next so many messages."""
    messages: list[tuple[int, FromProbe]] = []

    def is_all() -> bool:
        messages.extend(hub.receive(0.05))
        return len(messages) >= count

    assert wait_until(is_all), messages
    return messages


def test_a_worker_and_its_supervisor_hear_each_other(hub: Hub[FromProbe]) -> None:
    """A worker says hello first, and is sent the greeting."""
    hub.greeting = MeasureMemoryFractions(sizes=[3], hard_limits=[None])
    with worker_of(hub) as worker:
        (greeted,) = receive(hub, 1)
        hub.send(MeasureMemoryFractions(sizes=[5], hard_limits=[None]))
        (answered,) = receive(hub, 1)

    assert hub.pids == {0: worker.pid}
    assert greeted == (0, MemoryFractions(fractions=[3.0]))
    assert answered == (0, MemoryFractions(fractions=[5.0]))


def test_a_process_without_a_supervisor_has_no_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch -m trainer` works by hand."""
    monkeypatch.delenv(SOCKET_VARIABLE, raising=False)

    assert Wire.from_environment(ToProbe) is None


def test_a_message_may_arrive_in_pieces(hub: Hub[FromProbe]) -> None:
    """A line longer than the socket's buffer does; half a message is none."""
    with connect(hub, 0) as connection:
        first, second = encode(Beat(step=0)), encode(Beat(step=1))

        connection.sendall(first + second[:9])
        before = receive(hub, 1)
        connection.sendall(second[9:])
        after = receive(hub, 1)

    assert before == [(0, Beat(step=0))]
    assert after == [(0, Beat(step=1))]


def test_messages_are_told_apart_by_rank(hub: Hub[FromProbe]) -> None:
    """The order in which ranks connect is any."""
    with connect(hub, 1) as second, connect(hub, 0) as first:
        second.sendall(encode(Beat(step=2)))
        first.sendall(encode(Beat(step=1)))
        messages = receive(hub, 2)

    assert sorted(messages, key=lambda pair: pair[0]) == [(0, Beat(step=1)), (1, Beat(step=2))]


def test_the_end_of_a_worker_is_noticed_after_its_last_message(hub: Hub[FromProbe]) -> None:
    """The kernel closes the socket of a process that was killed."""
    last = Failed(cause=Cause.CRASHED, text="no")
    connection = connect(hub, 3)
    connection.sendall(encode(last))
    connection.close()

    messages = receive(hub, 1)

    assert messages == [(3, last)]
    assert wait_until(lambda: hub.receive(0.05) == [] and hub.lost_a_rank)
    hub.send(Build(workload="a:b", settings={}))  # to nobody, and no error


@pytest.mark.parametrize("calls", [0, 1, 2], ids=["not accepted", "unread", "all read"])
def test_a_worker_ends_with_its_supervisor(hub: Hub[FromProbe], calls: int) -> None:
    """Unread messages reset the connection: the worker sees an error, not the end of the file."""
    with worker_of(hub, beats=20) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"sent\n"
        for _ in range(calls):
            hub.receive(10)

        hub.close()

        assert worker.wait(300) == 1


LONG = ("ü\n" + "d" * 60,) * 3
"""Folders whose path is longer than a socket's may be, and not of one line."""


@pytest.fixture
def long_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, of this process and of those that it starts."""
    folder = tmp_path.joinpath(*LONG)
    folder.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


def test_a_temporary_folder_may_have_any_path(long_folder: Path) -> None:
    """A socket's own path has at most 107 bytes."""
    hub = Hub[FromProbe](FromProbe)
    hub.greeting = MeasureMemoryFractions(sizes=[3], hard_limits=[None])
    with closing(hub), worker_of(hub):
        (greeted,) = receive(hub, 1)

    assert greeted == (0, MemoryFractions(fractions=[3.0]))
    assert hub.path.startswith(str(long_folder))
    assert list(long_folder.iterdir()) == []


@pytest.mark.parametrize("make", [lambda path: None, Path.touch], ids=["missing", "a file"])
def test_a_temporary_folder_that_is_none_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    """By the next that Python knows, as /tmp."""
    make(tmp_path / "none")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    monkeypatch.setattr("tempfile.tempdir", None)

    hub = Hub[FromProbe](FromProbe)
    hub.close()

    assert not hub.path.startswith(str(tmp_path / "none"))


def test_without_any_temporary_folder_the_error_names_the_variable() -> None:
    """Here no file may have a byte, as on a full disk."""
    script = (
        "import resource\n"
        "from autotune.errors import OutputError\n"
        "from autotune.workers.channel import Hub\n"
        "from autotune.workers.messages import FromProbe\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "try:\n"
        "    Hub(FromProbe)\n"
        "except OutputError as error:\n"
        "    print(error)\n"
    )

    said = printed_by(script, PYTHONPATH=str(ROOT))

    assert said.startswith("cannot make a temporary file: No usable temporary directory found in [")
    assert said.endswith("]; set TMPDIR to a folder that you can write to and that has space\n")


@pytest.mark.parametrize(
    ("line", "quoted"),
    [
        (b"nonsense\n", "b'nonsense'"),
        (b"\n", "b''"),
        (b"\xff\xfe\n", r"b'\xff\xfe'"),
        (b"[1]\n", "b'[1]'"),
        (b"{}\n", "b'{}'"),
        (b'{"type": "of tomorrow"}\n', """b'{"type": "of tomorrow"}'"""),
        (b'{"type": ["beat"]}\n', """b'{"type": ["beat"]}'"""),
        (b'{"type": "beat"}\n', """b'{"type": "beat"}'"""),
        (b'{"type": "beat", "step": "x"}\n', """b'{"type": "beat", "step": "x"}'"""),
        (b"[" * 100_000 + b"\n", f"b'{'[' * 78} … {'[' * 19}'"),
        (b"9" * 5000 + b"\n", f"b'{'9' * 78} … {'9' * 19}'"),
    ],
)
def test_a_line_that_is_no_message_is_quoted_in_an_error(
    hub: Hub[FromProbe], line: bytes, quoted: str
) -> None:
    """A worker of another version, or what a library printed into the wrong place."""
    with connect(hub, 0) as connection:
        connection.sendall(line)
        with pytest.raises(WorkerError) as caught:
            receive(hub, 1)

    assert str(caught.value) == (
        f"a worker sent what is no message of this version: {quoted}; look into its log; it may "
        "run another chatlm"
    )


def test_a_message_ahead_of_the_hello_is_an_error(hub: Hub[FromProbe]) -> None:
    """Nobody knows its rank."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(hub.path)
        connection.sendall(encode(Beat(step=1)))
        with pytest.raises(WorkerError, match="what is no message of this version"):
            receive(hub, 1)


def test_half_a_message_of_a_worker_that_was_killed_is_left_out(hub: Hub[FromProbe]) -> None:
    """Its connection ends in the middle of a line."""
    connection = connect(hub, 0)
    connection.sendall(encode(Beat(step=1)) + encode(Beat(step=2))[:-3])
    connection.close()

    messages = receive(hub, 1)

    assert messages == [(0, Beat(step=1))]
    assert wait_until(lambda: hub.receive(0.05) == [] and hub.lost_a_rank)


REPORT = Report(
    device="cpu", static_bytes=1, activation_peak=2, peak=3, allocated=3, resident=1, retries=0,
    seconds=(0.5, 0.25), samples=4, tokens=40,
)  # fmt: skip


@pytest.mark.parametrize(
    "message",
    [
        Build(workload="a:b", settings={"deep": {"list": [1, None]}}),
        Probe(phase="train", sizes=[1, 2], hard_limits=[None, 2**40], safe=[1, 2]),
        MeasureDataWait(sizes=[1], hard_limits=[None], loaders=2, busy=0.5),
        Ready(workload_info={"model": "m", "rows": 3}, held=Held(device="cpu", resident=1)),
        REPORT,
        DataWait(seconds=0.5, host_peak=2**40),
        MemoryFractions(fractions=None),
        Failed(cause=Cause.REFUSED, text="行\u2028\n", hint="give another"),
    ],
    ids=lambda message: message.type,
)
def test_a_message_is_the_same_on_the_other_side(message: Message) -> None:
    """Nested values, tuples and enums included; one message is one line."""
    line = encode(message)

    assert decoder(ToProbe | FromProbe)(line) == message
    assert line.count(b"\n") == 1


def test_closing_removes_the_socket() -> None:
    """And its folder, which only this user may open."""
    hub = Hub[FromProbe](FromProbe)
    folder = Path(hub.path).parent
    mode = folder.stat().st_mode & 0o777

    hub.close()

    assert mode == 0o700
    assert not folder.exists()
