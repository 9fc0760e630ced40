"""Messages between the supervisor and its workers, as JSON lines over a Unix socket.

A worker's standard output belongs to the libraries that print there. Each side notices the end of the
other: the supervisor reads the end of file, and a worker ends itself, so that it holds no device.
"""

import os
import queue
import selectors
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from autotune.cause import Cause
from autotune.devices.allocator import is_out_of_memory
from autotune.errors import ChatlmError, WorkerError, shown
from autotune.files import temporary_files
from autotune.terminal import write
from autotune.workers.messages import Failed, Hello, Loaded, Message, decoder, encode

SOCKET_VARIABLE = "CHATLM_SOCKET"
"""Environment variable that names the supervisor's socket."""

M = TypeVar("M")


class Hub(Generic[M]):
    """The supervisor's end: one connection a rank. `messages` is the union M that it receives."""

    def __init__(self, messages: Any) -> None:
        self.greeting: Message | None = None
        """What every rank is sent once it has said hello."""
        self.pids: dict[int, int] = {}
        """Process id by rank, of the ranks that said hello."""
        self.libraries: dict[int, int] = {}
        """Bytes that the libraries of a rank hold, of the ranks that have loaded them."""
        self.lost_a_rank = False
        """Whether a rank's connection has closed."""
        self._decode = decoder(Hello | Loaded | messages)
        with temporary_files():
            self._folder = tempfile.TemporaryDirectory(prefix="chatlm-")  # mode 0700
            self.path = str(Path(self._folder.name) / "socket")
            self._listener = socket.socket(socket.AF_UNIX)
            with short_path(self.path) as path:
                self._listener.bind(path)
        self._listener.listen()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._partial: dict[socket.socket, bytes] = {}
        self._rank: dict[socket.socket, int] = {}

    def receive(self, timeout: float) -> list[tuple[int, M]]:
        """The messages that arrive within `timeout` seconds, each with its rank.

        Raises:
            WorkerError: a worker sent a line that is no message.
        """
        messages: list[tuple[int, M]] = []
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._listener:
                connection, _ = self._listener.accept()
                self._selector.register(connection, selectors.EVENT_READ)
                self._partial[connection] = b""
            else:
                assert isinstance(key.fileobj, socket.socket)
                messages += self._read(key.fileobj)
        return messages

    def _read(self, connection: socket.socket) -> list[tuple[int, M]]:
        try:
            chunk = connection.recv(1 << 16)
        except ConnectionResetError:
            chunk = b""
        *lines, self._partial[connection] = (self._partial[connection] + chunk).split(b"\n")
        messages: list[tuple[int, M]] = []
        for line in lines:
            message = self._message(connection, line)
            if isinstance(message, Hello):
                self._rank[connection] = message.rank
                self.pids[message.rank] = message.pid
                if self.greeting is not None:
                    self._send(connection, encode(self.greeting))
            elif isinstance(message, Loaded):
                self.libraries[self._rank[connection]] = message.libraries
            else:
                messages.append((self._rank[connection], message))
        if not chunk:
            self._selector.unregister(connection)
            connection.close()
            del self._partial[connection]
            self.lost_a_rank |= self._rank.pop(connection, None) is not None
        return messages

    def _message(self, connection: socket.socket, line: bytes) -> Any:
        try:
            message = self._decode(line)
            if connection in self._rank or isinstance(message, Hello):
                return message
        except ValueError as error:
            raise _no_message(line) from error
        raise _no_message(line)

    def send(self, message: Message) -> None:
        """Sends the message to every rank; one that is gone is noticed by `receive`."""
        line = encode(message)
        for connection in self._rank:
            self._send(connection, line)

    def _send(self, connection: socket.socket, line: bytes) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(line)

    def close(self) -> None:
        for connection in list(self._partial):
            connection.close()
        self._selector.close()
        self._listener.close()
        self._folder.cleanup()


class Wire(Generic[M]):
    """A worker's end, which receives messages of the union M. The process ends with its supervisor."""

    def __init__(self, path: str, messages: Any) -> None:
        self._decode = decoder(messages)
        self._socket = socket.socket(socket.AF_UNIX)
        with short_path(path) as short:
            self._socket.connect(short)
        self._lock = threading.Lock()
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.send(Hello(rank=int(os.environ.get("RANK", "0")), pid=os.getpid()))
        threading.Thread(target=self._listen, name="chatlm-wire", daemon=True).start()

    @classmethod
    def from_environment(cls, messages: Any) -> "Wire[M] | None":
        """The wire to the supervisor that started this process, None without one."""
        path = os.environ.get(SOCKET_VARIABLE)
        return None if path is None else cls(path, messages)

    def receive(self) -> M:
        """Waits for the next message."""
        message: M = self._decode(self._lines.get())
        return message

    def send(self, message: Message) -> None:
        with self._lock:
            self._socket.sendall(encode(message))

    def fail(self, error: Exception) -> NoReturn:
        """Prints the error, sends it to the supervisor, and ends this process."""
        write("".join(traceback.format_exception(error)), sys.stderr)
        self.send(failed(error))
        sys.stdout.flush()
        os._exit(1)  # the other ranks may hang in a collective: do not wait for them at exit

    def _listen(self) -> None:
        # a supervisor that dies before it has read all resets the connection instead of ending it
        with suppress(ConnectionResetError), self._socket.makefile("rb") as lines:
            for line in lines:
                self._lines.put(line)
        os._exit(1)  # the supervisor is gone: nobody wants the result, others want the device


@contextmanager
def short_path(path: str) -> Iterator[str]:
    """Another path to the same socket, as long as the block lasts: a socket's has at most 107 bytes."""
    folder, name = os.path.split(path)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


def _no_message(line: bytes) -> WorkerError:
    return WorkerError(
        f"a worker sent what is no message of this version: {shown(line)}",
        "look into its log; it may run another chatlm",
    )


def failed(error: Exception) -> Failed:
    """The message for an exception: out of memory, refused for the user to fix, or a crash."""
    if isinstance(error, ChatlmError) and not is_out_of_memory(error):
        return Failed(cause=Cause.REFUSED, text=error.what, hint=error.hint)
    cause = Cause.DEVICE_OOM if is_out_of_memory(error) else Cause.CRASHED
    named = f"{type(error).__name__}: {error}"
    return Failed(cause=cause, text=named.removesuffix(": "))  # a MemoryError has no text
