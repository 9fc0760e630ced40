"""The supervisor's end and a worker's end of the wire, the latter in a process of its own."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from autotune.workers.channel import SOCKET_VARIABLE, Hub, Message, Wire
from tests.support.processes import wait_until
from tests.support.toy_workload import ROOT

WORKER = """
import sys
from autotune.workers.channel import Wire
wire = Wire.from_environment()
for _ in range(int(sys.argv[1])):
    wire.send({"type": "beat", "text": "x" * 1000})
print("sent", flush=True)
while (message := wire.messages.get())["type"] != "stop":
    wire.send({"type": "echo", "of": message})
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.close()


@contextmanager
def worker_of(hub: Hub, beats: int = 0) -> Iterator[subprocess.Popen[bytes]]:
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


def connect(hub: Hub, rank: int) -> socket.socket:
    """A worker's end without the worker: it has said hello."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(hub.path)
    connection.sendall(line(type="hello", rank=rank, pid=1))
    return connection


def line(**message: Any) -> bytes:
    return json.dumps(message).encode() + b"\n"


def receive(hub: Hub, count: int) -> list[Message]:
    """The next so many messages."""
    messages: list[Message] = []

    def is_all() -> bool:
        messages.extend(hub.receive(0.05))
        return len(messages) >= count

    assert wait_until(is_all), messages
    return messages


def test_a_worker_and_its_supervisor_hear_each_other(hub: Hub) -> None:
    """The first word is the worker's: who it is."""
    with worker_of(hub) as worker:
        (hello,) = receive(hub, 1)
        hub.send({"type": "probe", "size": 3})
        (echo,) = receive(hub, 1)

    assert hello == {"type": "hello", "rank": 0, "pid": worker.pid}
    assert echo == {"type": "echo", "rank": 0, "of": {"type": "probe", "size": 3}}


def test_a_process_without_a_supervisor_has_no_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch -m trainer` works by hand."""
    monkeypatch.delenv(SOCKET_VARIABLE, raising=False)

    assert Wire.from_environment() is None


def test_a_message_may_arrive_in_pieces(hub: Hub) -> None:
    """A line longer than the socket's buffer does; half a message is none."""
    with connect(hub, 0) as connection:
        receive(hub, 1)
        first, second = line(type="beat", step=0), line(type="beat", step=1)

        connection.sendall(first + second[:9])
        before = receive(hub, 1)
        connection.sendall(second[9:])
        after = receive(hub, 1)

    assert [message["step"] for message in before] == [0]
    assert [message["step"] for message in after] == [1]


def test_messages_are_told_apart_by_rank(hub: Hub) -> None:
    """The order in which ranks connect is any."""
    with connect(hub, 1) as second, connect(hub, 0) as first:
        receive(hub, 2)

        second.sendall(line(type="report"))
        first.sendall(line(type="report"))
        ranks = {message["rank"] for message in receive(hub, 2)}

    assert ranks == hub.ranks == {0, 1}


def test_the_end_of_a_worker_is_a_message_after_its_last_words(hub: Hub) -> None:
    """The kernel closes the socket of a process that was killed."""
    connection = connect(hub, 3)
    receive(hub, 1)
    connection.sendall(line(type="crash", text="no"))
    connection.close()

    messages = receive(hub, 2)
    hub.send({"type": "probe", "size": 1})  # to nobody, and no error

    assert [message["type"] for message in messages] == ["crash", "gone"]
    assert {message["rank"] for message in messages} == {3}
    assert hub.ranks == set()


def test_a_worker_ends_with_its_supervisor(hub: Hub) -> None:
    """Idle, with nothing on the wire."""
    with worker_of(hub) as worker:
        receive(hub, 1)

        hub.close()

        assert worker.wait(20) == 1


def test_a_worker_ends_when_its_supervisor_dies_before_it_has_read_all(hub: Hub) -> None:
    """Unread words reset the connection: the worker sees an error, not the end of the file."""
    with worker_of(hub, beats=20) as worker:
        receive(hub, 1)
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"sent\n"

        hub.close()

        assert worker.wait(20) == 1


def test_a_worker_ends_when_its_supervisor_dies_before_it_was_greeted(hub: Hub) -> None:
    """It had connected, and nobody had taken the call."""
    with worker_of(hub) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"sent\n"

        hub.close()

        assert worker.wait(20) == 1


def test_closing_removes_the_socket() -> None:
    """And its folder, which only this user may open."""
    hub = Hub()
    folder = Path(hub.path).parent
    mode = folder.stat().st_mode & 0o777

    hub.close()

    assert mode == 0o700
    assert not folder.exists()
