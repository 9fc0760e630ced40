"""The messages between a supervisor and its probe workers, and the JSON line that each message becomes.

The messages of a training run are in `trainer.events`. pydantic loads when the first line is decoded.
"""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol, get_args

from autotune.cause import Cause
from autotune.readings import Held, Report

Phase = Literal["train", "evaluate"]


class Message(Protocol):
    """A frozen dataclass; `type` tells it apart on the wire."""

    type: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """Build the workload `module:function` from plain settings; answered by `Ready`."""

    type: ClassVar[str] = "build"
    workload: str
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Probe one size; answered by `Report`. Sequences hold one value a rank, in bytes and sequences."""

    type: ClassVar[str] = "probe"
    phase: Phase
    sizes: Sequence[int]
    hard_limits: Sequence[int | None]
    safe: Sequence[int]
    """A peak below this fits, even before it has settled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureDataWait:
    """Measure how long a step of `busy` seconds waits for its data; answered by `DataWait`."""

    type: ClassVar[str] = "measure_data_wait"
    sizes: Sequence[int]
    hard_limits: Sequence[int | None]
    loaders: int
    busy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureMemoryFractions:
    """Measure what source and target take of the memory; answered by `MemoryFractions`."""

    type: ClassVar[str] = "measure_memory_fractions"
    sizes: Sequence[int]
    hard_limits: Sequence[int | None]


Request = Probe | MeasureDataWait | MeasureMemoryFractions
ToProbe = Build | Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The first message of every worker."""

    type: ClassVar[str] = "hello"
    rank: int
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The worker's libraries are loaded, or hold more since they have read the data."""

    type: ClassVar[str] = "loaded"
    libraries: int
    """Bytes of anonymous memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The workload is built."""

    type: ClassVar[str] = "ready"
    workload_info: dict[str, Any]
    held: Held


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A step has ended; it keeps the watchdog quiet."""

    type: ClassVar[str] = "beat"
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataWait:
    """The cost of a step's data: waiting time and memory."""

    type: ClassVar[str] = "data_wait"
    seconds: float
    """Time that the step waits for its data."""
    host_peak: int
    """Bytes of the loader processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFractions:
    """The shares that source and target take of a micro-batch's memory; None where both are padded as one."""

    type: ClassVar[str] = "memory_fractions"
    fractions: Sequence[float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The last message of a worker that an exception ends: out of memory, refused or crashed."""

    type: ClassVar[str] = "failed"
    cause: Cause
    text: str
    hint: str | None = None
    """What to try; of a refusal only."""


Answer = Report | DataWait | MemoryFractions
FromProbe = Ready | Beat | Answer | Failed


def encode(message: Message) -> bytes:
    """The message as one JSON line."""
    return json.dumps({"type": message.type, **asdict(message)}).encode() + b"\n"


def decoder(messages: Any) -> Callable[[bytes], Any]:
    """Decodes the JSON line of one of these messages, a union; raises ValueError on any other line."""
    kinds = {kind.type: kind for kind in get_args(messages)}

    def decode(line: bytes) -> Any:
        try:
            values = json.loads(line)
        except RecursionError as error:
            raise ValueError("nested too deep") from error
        kind = values.pop("type", None) if isinstance(values, dict) else None
        if not isinstance(kind, str) or kind not in kinds:
            raise ValueError(f"no message of type {kind}")
        return _adapter(kinds[kind]).validate_python(values)

    return decode


@functools.cache
def _adapter(kind: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
