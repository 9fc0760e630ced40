"""A group of worker processes, one a rank: starts them, talks to them, tells how they ended."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Generic, Self

from autotune.cause import Cause, Failure
from autotune.devices.host import HostMeter
from autotune.devices.processes import anonymous, resident
from autotune.errors import OutputError
from autotune.workers.channel import SOCKET_VARIABLE, Hub, M
from autotune.workers.messages import Message

EXIT_TIMEOUT = 5.0
"""Seconds between the request to end and the kill."""
FATAL = (
    signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGKILL, signal.SIGSEGV,
)  # fmt: skip
"""Signals that no worker of ours sends itself."""


class WorkerGroup(Generic[M]):
    """Processes that one command launches; use it in a `with`, so that none outlives it.

    `messages` is the union M that they send.
    """

    def __init__(
        self, command: Sequence[str], *, messages: Any, environment: Mapping[str, str],
        log_path: Path, host: HostMeter, inherited: Sequence[int] = (),
    ) -> None:  # fmt: skip
        """Starts the command; its process inherits these descriptors, such as a lock's."""
        self.log_path = log_path
        self._log = _open_log(log_path)
        self._log_start = self._log.tell()
        self._hub: Hub[M] = Hub(messages)
        self._host = host
        self._oom_kills = host.oom_kills()
        self.lost_a_rank = False
        """Whether a rank closed its connection before the messages that `watch` yielded last."""
        self.pids = self._hub.pids
        try:
            self._launcher = subprocess.Popen(
                list(command),
                env={**environment, SOCKET_VARIABLE: self._hub.path},
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                pass_fds=inherited,
                start_new_session=True,  # Ctrl-C is the supervisor's to handle
            )
        except BaseException:  # no process could be started, or Ctrl-C
            self._hub.close()
            self._log.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def send(self, message: Message) -> None:
        """Sends it to every rank. Kernel kills count from just before, because the message may cause one."""
        self._oom_kills = self._host.oom_kills()
        self._hub.send(message)

    def watch(self, tick: float, greeting: Message | None = None) -> Iterator[list[tuple[int, M]]]:
        """Yields (rank, message) pairs once a tick, also an empty list, until the workers have ended.

        Each rank is sent the greeting after its hello. The workers have ended when their launcher has, or
        when one rank is gone: the others wait for it in a collective. The last messages are yielded too.
        """
        self._hub.greeting = greeting
        while True:
            self.lost_a_rank = self._hub.lost_a_rank
            has_ended = self.lost_a_rank or self.ended()
            messages = self._hub.receive(tick)
            if has_ended and not messages:
                return
            yield messages

    def how_it_ended(self) -> Failure:
        """The failure of workers that ended without a message; waits for the launcher."""
        code = self.exit_code()
        if self._host.oom_kills() > self._oom_kills:
            detail = "host memory: the kernel killed the worker"
            return Failure(cause=Cause.HOST_OOM, detail=detail, exit_code=code)
        if code == -signal.SIGKILL:
            return Failure(cause=Cause.KILLED, detail="was killed (SIGKILL)", exit_code=code)
        how = _signal_name(-code) if code < 0 else f"exit code {code}"
        return Failure(cause=Cause.DIED, detail=f"died ({how})", exit_code=code)

    def resident(self) -> dict[int, int]:
        """Resident host memory by rank, bytes."""
        pids = list(self.pids.items())  # the sampler's thread asks, while a rank may say hello
        return {rank: resident(pid) for rank, pid in pids}

    def held(self, *, with_libraries: bool) -> dict[int, int]:
        """What each rank holds of the host, bytes: anonymous memory.

        Without libraries it is what `HostMemory` counts, and nothing before they are loaded.
        """
        pids = list(self.pids.items())  # as above
        if with_libraries:
            return {rank: anonymous(pid) for rank, pid in pids}
        known = self._hub.libraries
        return {rank: max(0, anonymous(pid) - known[rank]) for rank, pid in pids if rank in known}

    def ended(self) -> bool:
        """Whether the launcher has ended; its last messages may still be unread."""
        return self._launcher.poll() is not None

    def exit_code(self) -> int:
        """The exit code of the worker that failed, negative for a signal; waits for the launcher.

        Of several workers it is the one that a signal ended: the others fail later, in the next collective,
        or torchrun ends them with SIGTERM.
        """
        try:
            code = self._launcher.wait(EXIT_TIMEOUT * 2)
        except subprocess.TimeoutExpired:
            self._kill()
            code = 1  # of our own kill; torchrun's report has the worker's
        found = [int(n) for n in re.findall(r"exitcode\s*:\s*(-?\d{1,9})\b", self.log_tail())]
        if code <= 0 or not found:
            return _as_signal(code)
        codes = [_as_signal(each) for each in found if each != -signal.SIGTERM] or found
        if -signal.SIGKILL in codes:
            return -signal.SIGKILL
        return next((each for each in codes if each < 0), codes[0])

    def log_tail(self) -> str:
        """The last 200 lines that these workers printed."""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-200:])

    def close(self) -> None:
        """Ends every process of the group, with SIGKILL only when it must; returns when they are gone."""
        self._hub.close()  # a worker ends itself when its supervisor's socket closes
        if not self.pids:  # still importing: no worker reads the socket
            self._launcher.terminate()
        try:
            self._launcher.wait(EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._launcher.terminate()
        finally:
            self._kill()
            self._log.close()

    def _is_ours(self, pid: int) -> bool:
        """Whether the process is still the one that we started: the kernel reuses numbers."""
        try:
            return os.fsencode(self._hub.path) in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False

    def _kill(self) -> None:
        for pid in self.pids.values():
            if self._is_ours(pid):
                with suppress(ProcessLookupError):  # it has ended since
                    os.kill(pid, signal.SIGKILL)
        try:
            self._launcher.wait(EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._launcher.kill()
            self._launcher.wait()
        # torchrun's workers are not our children: wait until their memory is free
        deadline = time.monotonic() + EXIT_TIMEOUT
        while any(map(self._is_ours, self.pids.values())) and time.monotonic() < deadline:
            time.sleep(0.01)


def _as_signal(code: int) -> int:
    """The code as Python gives it: a shell between us and the worker adds 128 to the signal."""
    return 128 - code if code - 128 in FATAL else code


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have none
        return f"signal {number}"


def _open_log(path: Path) -> IO[bytes]:
    """The log at its end, without a buffer: nothing is left to fail when it is closed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise OutputError(f"cannot write the log {path}: {error.strerror}") from error
    log = os.fdopen(descriptor, "ab", buffering=0)
    with suppress(OSError):  # workers do not need it, and the disk may have room again
        log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} ---\n".encode())
    return log
