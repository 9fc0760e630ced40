"""Where a case of `bench.chaos` takes place: folders of its own, and the command that runs in them."""

import fcntl
import itertools
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.chaos_judge import content
from bench.commands import CHATLM
from bench.processes import command, descendants, send, started_with
from bench.small import save_small
from bench.small_run import EFFECTIVE, Start, look_at, train_words, write_profile, write_rows

STEPS, EVERY, EVAL_EVERY = 12, 2, 5
"""Of the run; it saves every second step."""
MANY, FEW = 12_000, 2 * EFFECTIVE
"""Rows: as many as take seconds to be tokenised, and those that are evaluated."""
LONGEST = 90.0
"""Seconds after a disturbance in which the command must end."""
IN_FRONT_OF_A_TERMINAL = (
    sys.executable, "-c",
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execvp(sys.argv[1], sys.argv[1:])",
)  # fmt: skip
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Ground:
    """What all cases share and none may change: the model, the rows, the undisturbed run."""

    folder: Path

    @property
    def whole(self) -> Path:
        return self.folder / "whole" / "run"

    @property
    def cache(self) -> Path:
        """The token stores."""
        return self.folder / "whole" / "cache"

    def make(self) -> float:
        """Writes the files and runs the undisturbed run; its seconds."""
        write_profile(self.folder)
        write_rows(self.folder / "rows.jsonl", MANY)
        write_rows(self.folder / "few.jsonl", FEW)
        save_small("t5", self.folder / "model")
        began = time.monotonic()
        start = Place(self, "whole", tokens=False).train()
        if start.end() != 0:
            raise SystemExit(f"the undisturbed run failed: {start.said()[-2000:]}")
        return time.monotonic() - began


class Place:
    """The command's current folder, with the run, a cache, and a folder that nothing may touch."""

    def __init__(self, ground: Ground, name: str = "", *, tokens: bool = True) -> None:
        """With `tokens` the data are tokenised already."""
        self.ground = ground
        self.folder = ground.folder / (name or f"p{next(_numbers)}")
        self.output, self.cache = self.folder / "run", self.folder / "cache"
        self.outside, self.temporary = self.folder / "outside", self.folder / "tmp"
        for path in (self.outside, self.temporary):
            path.mkdir(parents=True)
        (self.outside / "canary").write_text("not a run's\n")
        if tokens:
            shutil.copytree(ground.cache, self.cache)
        self.canary = content(self.outside)

    def train(
        self,
        *more: str,
        cut: tuple[int, int] = (1, 8),
        output: str = "run",
        rows: Path | None = None,
        **streams: Any,
    ) -> "Command":
        """One start of the case's run, with further flags."""
        words = [
            *train_words(self.ground.folder, output, steps=STEPS, cut=cut, rows=rows),
            "--eval-data", str(self.ground.folder / "few.jsonl"), "--eval-every", str(EVAL_EVERY),
            "--checkpoint-every", str(EVERY), "--generate-rows", "4", *more,
        ]  # fmt: skip
        return Command(self, words, self.folder / output, **streams)

    def tune(self, *more: str, **streams: Any) -> "Command":
        """One start of the case's tuning."""
        words = [
            "autotune", "--device", "cpu", "--plain", "--vram-limit", "1GiB", "--max-batch", "4",
            "--model", str(self.ground.folder / "model"), "--max-source-length", "24",
            "--data", str(self.ground.folder / "few.jsonl"), "--max-target-length", "24", *more,
        ]  # fmt: skip
        return Command(self, words, self.output, **streams)

    def copy_whole(self) -> None:
        """Puts a copy of the finished undisturbed run where the case's run goes."""
        shutil.copytree(self.ground.whole, self.output)

    def newest(self) -> int:
        """The step of the newest checkpoint; 0 without one."""
        return look_at(self.output)[0]


class Command(Start):
    """A start that is read through a pipe or a terminal, and whose processes can be found."""

    def __init__(
        self, place: Place, words: Sequence[str], output: Path,
        *, on_terminal: bool = False, in_front: Sequence[str] = (), stdout: Any = None,
    ) -> None:  # fmt: skip
        """With `stdout`, only its errors are read."""
        self.place, self.mark = place, f"chaos-{os.getpid()}-{next(_numbers)}"
        self._ours, theirs = os.openpty() if on_terminal else os.pipe()
        if on_terminal:
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
            words = [word for word in words if word != "--plain"]
            in_front = (*IN_FRONT_OF_A_TERMINAL, *in_front)
        super().__init__(
            words, folder=place.folder, output=output, words=place.folder / f"{self.mark}.txt",
            in_front=in_front, stdin=theirs if on_terminal else subprocess.DEVNULL,
            stdout=theirs if stdout is None else stdout, stderr=theirs,
            environment={
                "CHATLM_CACHE": str(place.cache), "TMPDIR": str(place.temporary),
                "CHATLM_CHAOS": self.mark, "TERM": "xterm-256color",
            },
        )  # fmt: skip
        os.close(theirs)
        self._hung_up = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def supervisor(self) -> int:
        """The command's own process, not one that stands in front of it."""
        own = f"{' '.join(CHATLM)} "
        pids = [self.process.pid, *descendants(self.process.pid)]
        return next((pid for pid in pids if command(pid).startswith(own)), self.process.pid)

    def hang_up(self) -> None:
        """Closes the terminal, as a window or a connection that is closed does."""
        self._hung_up.set()
        self._reader.join()

    def end(self) -> int | None:
        """The exit code; None where it had to be killed."""
        try:
            return self.process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            send(started_with(self.mark), signal.SIGKILL)
            self.process.wait()
            return None
        finally:
            self._reader.join(2)

    def _read(self) -> None:
        with self.words.open("ab") as file, suppress(OSError):  # a terminal's end is an error
            while not self._hung_up.is_set():
                if select.select([self._ours], [], [], 0.05)[0]:
                    piece = os.read(self._ours, 1 << 16)
                    if not piece:
                        break
                    file.write(piece)
                    file.flush()
        os.close(self._ours)
