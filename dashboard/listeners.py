"""The listeners of a command: the screen, the text log, and with --events a record of every event."""

import itertools
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO, cast

from autotune.errors import OutputError
from autotune.events import Emit, Listeners
from autotune.terminal import Output
from dashboard.event_log import record_events
from dashboard.live import open_screen
from dashboard.plain_lines import PlainLines


@contextmanager
def open_listeners(
    name: str, *, as_json: bool, plain: bool, events: Path | None
) -> Iterator[tuple[Emit, Path]]:
    """Where a command's events go, and the text log, `./logs/NAME_TIME.log`.

    Raises:
        OutputError: the current folder cannot be written.
    """
    with ExitStack() as stack:
        log, path = stack.enter_context(open_log(f"{name}_{time.strftime('%Y%m%d-%H%M%S')}"))
        screen = open_screen(plain=plain, stream=sys.stderr if as_json else sys.stdout)
        listeners: list[Emit] = [stack.enter_context(screen), PlainLines(log)]
        if events is not None:
            listeners.append(stack.enter_context(record_events(events)))
        yield Listeners(listeners), path


@contextmanager
def open_log(name: str) -> Iterator[tuple[TextIO, Path]]:
    """A new file in `./logs`: `NAME.log`, or `NAME-2.log` where another command of that second has it."""
    try:
        path = Path("logs") / f"{name}.log"
        path.parent.mkdir(exist_ok=True)
        descriptor, path = _create(path)
    except OSError as error:
        raise OutputError(
            f"cannot write the log {path}: {error.strerror}",
            "run in a folder that you can write to",
        ) from error
    stream = os.fdopen(descriptor, "w", encoding="utf-8")
    try:
        yield cast(TextIO, Output(stream, str(path))), path
    finally:
        with suppress(OSError):  # each line was written when it came
            stream.close()


def _create(path: Path) -> tuple[int, Path]:
    """Opens the first of these names that is free; never what a link points to."""
    for number in itertools.count(1):
        free = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        with suppress(FileExistsError):
            return os.open(free, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o666), free
    raise AssertionError("unreachable")
