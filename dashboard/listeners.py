"""Who listens to a command: the screen, the text log, and a record of events where one is asked for."""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from autotune.errors import OutputError
from autotune.events import Emit, Listeners
from dashboard.event_log import EventLog
from dashboard.live import open_screen
from dashboard.plain_lines import PlainLines


@contextmanager
def open_listeners(
    as_json: bool, plain: bool, log_path: Path, events: Path | None
) -> Iterator[Emit]:
    """The screen, the text log, and the record of events where one is asked for."""

    log_path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stream = sys.stderr if as_json else sys.stdout
        log = stack.enter_context(log_path.open("a", encoding="utf-8", buffering=1))
        listeners: list[Emit] = [
            stack.enter_context(open_screen(plain=plain, stream=stream)),
            PlainLines(log),
        ]
        if events is not None:
            listeners.append(stack.enter_context(EventLog(events)))
        yield Listeners(listeners)


def log_path(what: str) -> Path:
    """A new text log under `./logs`, named by what runs and when.

    Raises:
        OutputError: the current folder cannot be written.
    """
    path = Path("logs") / f"{what}_{time.strftime('%Y%m%d-%H%M%S')}.log"
    try:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    except OSError as error:
        raise OutputError(
            f"cannot write the log {path}: {error.strerror}",
            "run in a folder that you can write to",
        ) from error
    return path
