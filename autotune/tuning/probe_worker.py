"""`python -m autotune.tuning.probe_worker`: builds a workload and probes it on request.

`session` starts one process a rank. A worker knows no verdict and no budget.
"""

import os
import pkgutil
from collections.abc import Callable
from typing import assert_never

from autotune.devices.allocator import HostMemory
from autotune.devices.processes import without_collection
from autotune.readings import Held
from autotune.terminal import clean_standard_outputs
from autotune.tuning.probe import Workload, measure, measure_evaluation, measure_memory_fractions
from autotune.workers import messages
from autotune.workers.channel import Wire


def main() -> None:
    """Serves requests until the wire ends the process with its supervisor."""
    clean_standard_outputs()
    wire = Wire[messages.ToProbe].from_environment(messages.ToProbe)
    assert wire is not None, "started by hand: use `chatlm autotune`"
    rank = int(os.environ.get("RANK", "0"))

    def beat(step: int) -> None:
        wire.send(messages.Beat(step=step))

    try:
        request = wire.receive()
        assert isinstance(request, messages.Build)
        with without_collection():
            build = pkgutil.resolve_name(request.workload)
        HostMemory.tell = lambda libraries: wire.send(messages.Loaded(libraries=libraries))
        HostMemory.exclude_libraries()
        workload: Workload = build(request.settings)
        memory = workload.memory
        memory.release_cached()
        held = Held(device=memory.device, resident=memory.resident())
        wire.send(messages.Ready(workload_info=dict(workload.workload_info), held=held))
        while True:
            request = wire.receive()
            assert not isinstance(request, messages.Build)
            wire.send(answer(workload, request, rank, beat))
    except Exception as error:  # noqa: BLE001  sent to the supervisor, whatever it is
        wire.fail(error)


def answer(
    workload: Workload, request: messages.Request, rank: int, beat: Callable[[int], None]
) -> messages.Answer:
    """The answer to a request; `beat(step)` is called after each step."""
    if (limit := request.hard_limits[rank]) is not None:
        workload.memory.limit(limit)
    size = request.sizes[rank]
    match request:
        case messages.Probe(phase="train"):
            return measure(workload, size, beat, safe=request.safe[rank])
        case messages.Probe():
            return measure_evaluation(workload, size, beat)
        case messages.MeasureDataWait():
            seconds, host = workload.data_wait(size, loaders=request.loaders, busy=request.busy)
            return messages.DataWait(seconds=seconds, host_peak=host)
        case messages.MeasureMemoryFractions():
            return messages.MemoryFractions(fractions=measure_memory_fractions(workload, size))
        case other:
            assert_never(other)


if __name__ == "__main__":
    main()
