"""`python -m autotune.tuning.probe_worker`: builds a workload and probes it on request.

`session` starts one process a rank. A worker knows no verdict and no budget.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import assert_never

from autotune.cause import Cause
from autotune.devices.allocator import is_out_of_memory
from autotune.errors import ChatlmError
from autotune.readings import Held, Report
from autotune.tuning.probe import Workload, measure, measure_evaluation, measure_memory_fractions
from autotune.workers.channel import Wire
from autotune.workers.messages import (
    Beat,
    Build,
    DataWait,
    Failed,
    MeasureDataWait,
    MeasureMemoryFractions,
    MemoryFractions,
    Message,
    Probe,
    Ready,
    Request,
    ToProbe,
)  # fmt: skip


def main() -> None:
    """Serves requests until the wire ends the process with its supervisor."""
    wire = Wire[ToProbe].from_environment(ToProbe)
    assert wire is not None, "started by hand: use `chatlm autotune`"
    rank = int(os.environ.get("RANK", "0"))
    try:
        request = wire.receive()
        assert isinstance(request, Build)
        workload = build(request)
        memory = workload.memory
        memory.release_cached()
        held = Held(device=memory.device, resident=memory.resident())
        wire.send(Ready(workload_info=dict(workload.workload_info), held=held))
        while True:
            request = wire.receive()
            assert not isinstance(request, Build)
            wire.send(answer(workload, request, rank, wire.send))
    except Exception as error:  # noqa: BLE001  sent to the supervisor, whatever it is
        traceback.print_exc()
        wire.send(failed(error))
        sys.stdout.flush()
        os._exit(1)  # the other ranks may hang in a collective: do not wait for them at exit


def build(request: Build) -> Workload:
    """The workload that `module:function` returns for the settings."""
    module, _, function = request.workload.partition(":")
    workload: Workload = getattr(importlib.import_module(module), function)(request.settings)
    return workload


def answer(
    workload: Workload, request: Request, rank: int, say: Callable[[Message], None]
) -> Report | DataWait | MemoryFractions:
    """The answer to a request; `say` takes a beat after each step."""

    def beat(step: int) -> None:
        say(Beat(step=step))

    if (limit := request.hard_limits[rank]) is not None:
        workload.memory.limit(limit)
    size = request.sizes[rank]
    match request:
        case Probe(phase="train"):
            return measure(workload, size, beat, safe=request.safe[rank])
        case Probe():
            return measure_evaluation(workload, size, beat)
        case MeasureDataWait():
            seconds, host = workload.data_wait(size, loaders=request.loaders, busy=request.busy)
            return DataWait(seconds=seconds, host_peak=host)
        case MeasureMemoryFractions():
            fractions = measure_memory_fractions(workload, size)
            return MemoryFractions(fractions=None if fractions is None else tuple(fractions))
        case other:
            assert_never(other)


def failed(error: Exception) -> Failed:
    """The message for an exception: out of memory, refused for the user to fix, or a crash."""
    if isinstance(error, ChatlmError) and not is_out_of_memory(error):
        return Failed(cause=Cause.REFUSED, text=str(error))
    cause = Cause.DEVICE_OOM if is_out_of_memory(error) else Cause.CRASHED
    named = f"{type(error).__name__}: {error}"
    return Failed(cause=cause, text=named.removesuffix(": "))  # a MemoryError has no text


if __name__ == "__main__":
    main()
