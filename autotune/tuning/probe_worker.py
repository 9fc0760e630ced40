"""`python -m autotune.tuning.probe_worker`: builds the workload that it is told to and probes on request.

Started by `session`, one process a rank; answers over the wire. It knows no verdict and no budget.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal, assert_never

from autotune.devices.allocator import is_out_of_memory
from autotune.errors import ChatlmError
from autotune.readings import Held
from autotune.tuning.probe import (
    Workload,
    measure,
    measure_evaluation,
    measure_memory_fractions,
)
from autotune.workers.channel import Message, Wire

Request = Literal["train", "evaluate", "wait", "sides"]


def main() -> None:
    """Serves probes until told to stop; the wire ends the process with its supervisor."""
    wire = Wire.from_environment()
    assert wire is not None, "started by hand: use `chatlm autotune`"
    rank = int(os.environ.get("RANK", "0"))
    try:
        workload = build(wire.messages.get())
        memory = workload.memory
        memory.release_cached()
        held = Held(device=memory.device, resident=memory.resident())
        wire.send({"type": "ready", "facts": dict(workload.workload_info), "held": asdict(held)})
        while True:
            reply = answer(workload, wire.messages.get(), rank, lambda beat: wire.send(beat))
            wire.send(reply)
    except Exception as error:  # noqa: BLE001  told to the supervisor, whatever it is
        traceback.print_exc()
        wire.send(failure(error))
        sys.stdout.flush()
        os._exit(1)  # the other ranks may hang in a collective: do not wait for them at exit


def build(message: Message) -> Workload:
    """The workload that the message names as `module:function` and plain settings."""
    module, _, function = message["workload"].partition(":")
    workload: Workload = getattr(importlib.import_module(module), function)(message["settings"])
    return workload


def answer(
    workload: Workload, message: Message, rank: int, say: Callable[[Message], None]
) -> dict[str, Any]:
    """What a request of the supervisor is answered with; `say` takes a beat after each step."""

    def beat(step: int) -> None:
        say({"type": "beat", "step": step})

    if (guard := message["guards"][rank]) is not None:
        workload.memory.limit(guard)
    size = message["sizes"][rank]
    request: Request = message["type"]
    match request:
        case "train":
            safe = message["far"][rank]
            report = measure(workload, size, beat, safe=safe).as_message()
        case "evaluate":
            report = measure_evaluation(workload, size, beat).as_message()
        case "wait":
            seconds, host = workload.data_wait(
                size, loaders=message["loaders"], busy=message["busy"]
            )
            report = {"seconds": seconds, "host": host}
        case "sides":
            report = {"shares": measure_memory_fractions(workload, size)}
        case other:
            assert_never(other)
    return {"type": "report", "report": report}


def failure(error: Exception) -> dict[str, Any]:
    """What went wrong, as a message: out of memory, the user's to mend, or a crash."""
    if is_out_of_memory(error):
        kind = "oom"
    else:
        kind = "refused" if isinstance(error, ChatlmError) else "crash"
    named = f"{type(error).__name__}: {error}".removesuffix(": ")  # a MemoryError says no more
    text = str(error) if kind == "refused" else named
    return {"type": kind, "text": text}


if __name__ == "__main__":
    main()
