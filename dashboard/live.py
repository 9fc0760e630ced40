"""Chooses between the live screen and plain lines, and restores the terminal.

The live screen uses the terminal's alternate page: nothing scrolls, and a resize leaves no rubbish.
At the end the last frame is printed on the normal page. SIGTERM and SIGHUP must reach `open_screen`
as exceptions, as SIGINT does. Signals that end or stop the process by default find the normal page restored.
"""

import io
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from typing import TYPE_CHECKING, TextIO

from autotune.events import Emit, ProbeEnded, TuningEnded
from autotune.terminal import encodable, unclean, write
from dashboard.plain_lines import PlainLines
from dashboard.state import Screen, update
from trainer.events import TrainingEnded

if TYPE_CHECKING:
    from rich.console import Group

FRAME = 1 / 8
"""Shortest time between two frames, seconds."""
ALWAYS_DRAWN = (ProbeEnded, TuningEnded, TrainingEnded)
OTHER_PAGE, NORMAL_PAGE = b"\x1b[?1049h\x1b[H\x1b[?25l", b"\x1b[0m\x1b[?25h\x1b[?1049l"
"""To the other page without a cursor, and back; as rich does it."""
STOPPING = (signal.SIGTSTP,)
ENDING = (
    signal.SIGQUIT, signal.SIGABRT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM,
    signal.SIGPROF, signal.SIGXCPU, signal.SIGTRAP, signal.SIGSYS, signal.SIGPWR, signal.SIGIO,
)  # fmt: skip
"""Signals that end a process by default, SIGINT, SIGTERM and SIGHUP aside; Python cannot handle the others."""


@contextmanager
def open_screen(*, plain: bool, stream: TextIO) -> Iterator[Emit]:
    """An `emit` that shows events on `stream`; the end of the block restores the terminal."""
    # a terminal with cursor codes, whatever FORCE_COLOR says
    has_cursor = stream.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")
    if plain or not has_cursor:
        yield PlainLines(stream)
        return
    live = LiveScreen(unclean(stream))
    with held_stderr(), normal_page_at_signals(live):
        try:
            live.open()
            yield live
        finally:
            live.close()


@contextmanager
def held_stderr() -> Iterator[None]:
    """Holds back what is written to stderr until the screen is closed; only where it is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    held = io.StringIO()
    try:
        with redirect_stderr(held):
            yield
    finally:
        with suppress(OSError):
            write(held.getvalue(), sys.stderr)


@contextmanager
def normal_page_at_signals(live: "LiveScreen") -> Iterator[None]:
    """Signals do what they do by default, but on the normal page: end the process, or stop it until `fg`."""

    def act(number: int, _: object) -> None:
        live.put(NORMAL_PAGE)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        signal.signal(number, act)  # after `fg`
        live.put(OTHER_PAGE)
        live.drawn = -math.inf  # the next event draws

    unhandled = [n for n in (*STOPPING, *ENDING) if signal.getsignal(n) == signal.SIG_DFL]
    for number in unhandled:
        signal.signal(number, act)
    try:
        yield
    finally:
        for number in unhandled:
            signal.signal(number, signal.SIG_DFL)


class LiveScreen:
    """A listener that draws; events may come from several threads."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console  # 100 ms, and only a terminal needs it
        from rich.live import Live

        self.stream = stream
        glyphs = "█━▒┃✓…×"
        self.ascii = encodable(glyphs, stream.encoding or "utf-8") != glyphs
        self.console = Console(
            file=stream, force_terminal=True, force_interactive=True, legacy_windows=False,
            highlight=False, markup=False, emoji=False,
        )  # fmt: skip
        self.live = Live(
            console=self.console, screen=True, auto_refresh=False, vertical_overflow="crop",
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        self.lock = threading.RLock()
        self.screen = Screen()
        self.began = self.drawn = time.monotonic()
        self.is_open = False

    def open(self) -> None:
        self.is_open = True
        self.live.start()
        self.draw()

    def __call__(self, event: object) -> None:
        with self.lock:
            self.screen = update(self.screen, event)
            due = time.monotonic() - self.drawn >= FRAME
            if self.is_open and (due or isinstance(event, ALWAYS_DRAWN)):
                try:
                    self.draw()
                except Exception:
                    self.close()  # the run continues without a screen, on a usable terminal
                    raise

    def draw(self) -> None:
        size = terminal_size(self.stream)
        self.console.size = size  # rich would read COLUMNS or stdin first
        self.live.update(self.frame(size), refresh=True)
        self.drawn = time.monotonic()

    def frame(self, size: os.terminal_size) -> "Group":
        from dashboard.view import render

        elapsed = time.monotonic() - self.began
        return render(self.screen, size.columns, elapsed, height=size.lines, ascii=self.ascii)

    def close(self) -> None:
        """Restores the normal page and the cursor, and prints the last frame."""
        with self.lock:
            if not self.is_open:
                return
            with suppress(OSError):  # after SIGHUP the terminal is gone
                try:
                    self.live.stop()
                except BaseException:  # Ctrl-C again
                    self.put(NORMAL_PAGE)
                    raise
                finally:
                    self.is_open = False
                if self.screen != Screen():
                    self.console.print(self.frame(terminal_size(self.stream)))

    def put(self, page: bytes) -> None:
        """Changes the page past every lock and buffer, for a signal's handler; nothing once it is closed."""
        if self.is_open:
            with suppress(OSError):
                os.write(self.stream.fileno(), page)


def terminal_size(stream: TextIO) -> os.terminal_size:
    """Columns and rows; 80 × 24 where the terminal does not say, as over a serial line."""
    with suppress(OSError):
        size = os.get_terminal_size(stream.fileno())
        if size.columns > 0 and size.lines > 0:
            return size
    return os.terminal_size((80, 24))
