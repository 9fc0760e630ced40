"""Chooses between the live screen and plain lines, and restores the terminal.

The live screen uses the terminal's alternate page: nothing scrolls, and a resize leaves no rubbish.
At the end the last frame is printed on the normal page. SIGTERM and SIGHUP must reach `open_screen`
as exceptions, as SIGINT does.
"""

import io
import os
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


@contextmanager
def open_screen(*, plain: bool, stream: TextIO) -> Iterator[Emit]:
    """An `emit` that shows events on `stream`; the end of the block restores the terminal."""
    # a terminal with cursor codes, whatever FORCE_COLOR says
    has_cursor = stream.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")
    if plain or not has_cursor:
        yield PlainLines(stream)
        return
    live = LiveScreen(unclean(stream))
    with held_stderr():
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
            self.is_open = False
            with suppress(OSError):  # after SIGHUP the terminal is gone
                self.live.stop()
                if self.screen != Screen():
                    self.console.print(self.frame(terminal_size(self.stream)))


def terminal_size(stream: TextIO) -> os.terminal_size:
    """Columns and rows; 80 × 24 where the terminal does not say, as over a serial line."""
    with suppress(OSError):
        size = os.get_terminal_size(stream.fileno())
        if size.columns > 0 and size.lines > 0:
            return size
    return os.terminal_size((80, 24))
