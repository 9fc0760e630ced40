"""JSON lines between the supervisor and its workers, over a Unix socket.

A worker's standard output belongs to whatever libraries print; the socket carries only messages.
Either side learns at once that the other is gone: the supervisor sees the end of file, and a
worker whose supervisor died ends itself, so that no orphan holds a device.
"""

import json
import os
import queue
import selectors
import socket
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

SOCKET_VARIABLE = "CHATLM_SOCKET"
"""Environment variable that names the supervisor's socket."""

Message = dict[str, Any]


class Hub:
    """The supervisor's end: accepts one connection a rank and collects their lines."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="chatlm-")  # mode 0700
        self.path = str(Path(self._folder.name) / "socket")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._partial: dict[socket.socket, bytes] = {}
        self._rank: dict[socket.socket, int] = {}

    @property
    def ranks(self) -> set[int]:
        """The ranks that said hello and are still connected."""
        return set(self._rank.values())

    def receive(self, timeout: float) -> list[Message]:
        """Messages that arrive within `timeout` seconds, each with the `rank` it is from.

        A connection's end is the message `{"type": "gone"}`.
        """
        messages: list[Message] = []
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._listener:
                connection, _ = self._listener.accept()
                self._selector.register(connection, selectors.EVENT_READ)
                self._partial[connection] = b""
            else:
                assert isinstance(key.fileobj, socket.socket)
                messages += self._read(key.fileobj)
        return messages

    def _read(self, connection: socket.socket) -> list[Message]:
        try:
            chunk = connection.recv(1 << 16)
        except ConnectionResetError:
            chunk = b""
        *lines, self._partial[connection] = (self._partial[connection] + chunk).split(b"\n")
        messages: list[Message] = [json.loads(line) for line in lines]
        for message in messages:
            if message["type"] == "hello":
                self._rank[connection] = message["rank"]
            message["rank"] = self._rank[connection]
        if not chunk:
            self._selector.unregister(connection)
            connection.close()
            del self._partial[connection]
            if (rank := self._rank.pop(connection, None)) is not None:
                messages.append({"type": "gone", "rank": rank})
        return messages

    def send(self, message: Mapping[str, Any]) -> None:
        """Hands the message to every rank; one that is gone is reported by `receive`."""
        line = json.dumps(message).encode() + b"\n"
        for connection in list(self._rank):
            try:
                connection.sendall(line)
            except (BrokenPipeError, ConnectionResetError):
                continue

    def close(self) -> None:
        for connection in list(self._partial):
            connection.close()
        self._selector.close()
        self._listener.close()
        self._folder.cleanup()


class Wire:
    """A worker's end. `messages` fills from a thread; the process ends with its supervisor."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._lock = threading.Lock()
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.send({"type": "hello", "rank": int(os.environ.get("RANK", "0")), "pid": os.getpid()})
        threading.Thread(target=self._listen, name="chatlm-wire", daemon=True).start()

    @classmethod
    def from_environment(cls) -> "Wire | None":
        """The wire to the supervisor that started this process, None without one."""
        path = os.environ.get(SOCKET_VARIABLE)
        return None if path is None else cls(path)

    def send(self, message: Mapping[str, Any]) -> None:
        with self._lock:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _listen(self) -> None:
        # a supervisor that dies with words of ours unread resets the connection instead of ending it
        with suppress(ConnectionResetError), self._socket.makefile("rb") as lines:
            for line in lines:
                self.messages.put(json.loads(line))
        os._exit(1)  # the supervisor is gone: nobody wants the result, others want the device
