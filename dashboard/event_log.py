"""A run's events in a file and back, a JSON line each: `{"event": "ProbeEnded", "at": 4.2, …}`."""

import functools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

from pydantic import TypeAdapter

from autotune import events as tuning
from autotune.errors import OutputError
from autotune.terminal import Output
from trainer import events as training

EVENTS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        tuning.Notice, tuning.TuningStarted, tuning.ProbeStarted, tuning.ReadingTaken,
        tuning.ProbeEnded, tuning.TuningEnded, training.Tokenising, training.TrainingStarted,
        training.StepEnded, training.Evaluated, training.CheckpointSaved, training.TrainingEnded,
    )
}  # fmt: skip


adapter: Callable[[type], TypeAdapter[Any]] = functools.cache(TypeAdapter)
"""Writes and reads the events of that kind; a field that it does not know is ignored."""


@contextmanager
def record_events(path: Path, now: Callable[[], float] = time.monotonic) -> Iterator[tuning.Emit]:
    """A listener that writes each event at once: a killed run leaves all but the last line.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}", "choose another file"
        ) from error
    began = now()
    with file:
        output = cast(TextIO, Output(file, str(path)))

        def write(event: object) -> None:
            if (kind := EVENTS.get(type(event).__name__)) is not None:
                head = {"event": kind.__name__, "at": round(now() - began, 3)}
                line = json.dumps({**head, **adapter(kind).dump_python(event)})
                output.write(f"{line}\n")

        yield write


def read_events(path: Path) -> Iterator[tuple[float, object]]:
    """(seconds since the start, event), without a cut-off last line and unknown events."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n"):
                return
            value = json.loads(line)
            at, kind = float(value.pop("at")), EVENTS.get(value.pop("event"))
            if kind is not None:
                yield at, adapter(kind).validate_python(value)
