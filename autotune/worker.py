"""`python -m autotune.worker`: builds the workload that it is told to and probes on request.

Started by `prober`, one process a rank; answers over the wire. It knows no verdict and no budget.
"""

import importlib
import os
import sys
import traceback
from typing import Any

from autotune.channel import Message, Wire
from autotune.errors import ChatlmError
from autotune.memory import is_out_of_memory
from autotune.probe import Workload, measure


def main() -> None:
    """Serves probes until told to stop; the wire ends the process with its supervisor."""
    wire = Wire.from_environment()
    assert wire is not None, "started by hand: use `chatlm autotune`"
    try:
        workload = build(wire.messages.get())
        wire.send(
            {"type": "ready", "facts": dict(workload.facts), "device": workload.memory.device}
        )
        while (message := wire.messages.get())["type"] == "probe":
            report = measure(
                workload, message["size"], lambda step: wire.send({"type": "beat", "step": step})
            )
            wire.send({"type": "report", "report": report.as_message()})
    except Exception as error:  # noqa: BLE001  told to the supervisor, whatever it is
        traceback.print_exc()
        wire.send(failure(error))
        sys.stdout.flush()
        os._exit(1)  # the other ranks may hang in a collective: do not wait for them at exit
    os._exit(0)


def build(message: Message) -> Workload:
    """The workload that the message names as `module:function` and plain settings."""
    module, _, function = message["workload"].partition(":")
    workload: Workload = getattr(importlib.import_module(module), function)(message["settings"])
    return workload


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
