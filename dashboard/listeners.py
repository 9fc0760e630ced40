"""The listeners of a command: the screen, the text log, and with --events a record of every event."""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from autotune.errors import OutputError
from autotune.events import Emit, Listeners
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
    path = Path("logs") / f"{name}_{time.strftime('%Y%m%d-%H%M%S')}.log"
    try:
        path.parent.mkdir(exist_ok=True)
        log = path.open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise OutputError(
            f"cannot write the log {path}: {error.strerror}",
            "run in a folder that you can write to",
        ) from error
    with log, ExitStack() as stack:
        screen = open_screen(plain=plain, stream=sys.stderr if as_json else sys.stdout)
        listeners: list[Emit] = [stack.enter_context(screen), PlainLines(log)]
        if events is not None:
            listeners.append(stack.enter_context(record_events(events)))
        yield Listeners(listeners), path
