"""A run's events in a file, one JSON object a line, and back: `{"event": "ProbeEnded", "at": 4.2, …}`.

The dashboard's picture is drawn from such a file, and a run can be watched again from it.
"""

import dataclasses
import json
import time
import types
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Self, Union, get_args, get_origin, get_type_hints

from autotune import events as tuning
from trainer import events as training

EVENTS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        tuning.Notice, tuning.TuningStarted, tuning.ProbeStarted, tuning.ReadingTaken,
        tuning.ProbeEnded, tuning.TuningEnded, training.Tokenising, training.TrainingStarted,
        training.StepEnded, training.Evaluated, training.CheckpointSaved, training.TrainingEnded,
    )
}  # fmt: skip


class EventLog:
    """A listener that writes each event at once, so that a killed run leaves all but the last line."""

    def __init__(self, path: Path, now: Callable[[], float] = time.monotonic) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("w", encoding="utf-8")
        self.now = now
        self.began = now()

    def __call__(self, event: object) -> None:
        if type(event).__name__ not in EVENTS:
            return
        head = {"event": type(event).__name__, "at": round(self.now() - self.began, 3)}
        line = json.dumps({**head, **fields_of(event)}, default=plain, ensure_ascii=False)
        self.file.write(line + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_events(path: Path) -> Iterator[tuple[float, object]]:
    """(seconds since the start, event), in order; a last line that was cut off is left out.

    Events and fields of an unknown name are passed over: another version wrote them.
    """
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n"):
                return
            value = json.loads(line)
            at, kind = float(value.pop("at")), EVENTS.get(value.pop("event"))
            if kind is not None:
                yield at, build(kind, value)


def fields_of(value: Any) -> dict[str, object]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def plain(value: object) -> object:
    """What `json` cannot write by itself: our values, and mappings that are no dict."""
    if dataclasses.is_dataclass(value):
        return fields_of(value)
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


def build(kind: Any, value: Any) -> Any:
    """The value of this type that `plain` wrote so."""
    origin, arguments = get_origin(kind), get_args(kind)
    if value is None:
        return None
    if origin in (Union, types.UnionType):
        return build(next(choice for choice in arguments if choice is not type(None)), value)
    if origin is tuple:
        return tuple(build(arguments[0], item) for item in value)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        known = {name: item for name, item in value.items() if name in hints}
        return kind(**{name: build(hints[name], item) for name, item in known.items()})
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    return value
