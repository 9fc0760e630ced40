"""What the meters cost: the share of one core that sampling at 20 Hz takes, with 8 cards and 8 workers.

    python -m bench.sampling --result bench/results/sampling-cpu.json

The tuner's own `MemorySampler` reads eight made-up cards through the real NVML binding, the real host files,
and the memory of eight real processes, while the main thread sleeps: the processor time of the whole
process is the meter's. The driver is made up in Python, and its answers count too, so a real one costs
what its own calls do instead. `reading_only` is the same with all but one part left out; `nothing` is
what waking a thread so often costs.
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autotune.devices.group import GpuDevices
from autotune.devices.host import HostMeter
from autotune.devices.nvml import Nvml
from autotune.devices.processes import resident
from autotune.devices.sampler import PERIOD, MemorySampler
from autotune.readings import HostReading
from bench.commands import write_result
from tests.support.fake_nvml import FakeDriver, FakeGpu

DEVICES = 8
CONTRACT = 0.01
"""Share of a core that sampling may take."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    host, no_cards = HostMeter(), GpuDevices(())
    with sleepers(DEVICES) as pids, FakeDriver(made_up()), Nvml.open() as nvml:
        group = GpuDevices(nvml.devices)
        samples = [sampled(group, host, pids, options.seconds) for _ in range(options.repeats)]
        still = StillHost()
        parts = {
            "nothing": sampled(no_cards, still, (), options.seconds),
            "devices": sampled(group, still, (), options.seconds),
            "host": sampled(no_cards, host, (), options.seconds),
            "workers": sampled(no_cards, still, pids, options.seconds),
        }
    document = {
        "devices": DEVICES,
        "workers": DEVICES,
        "period_seconds": PERIOD,
        "driver": "made up, in Python",
        "seconds": options.seconds,
        "contract": CONTRACT,
        **summary(samples),
        "reading_only": {name: sample["share_of_a_core"] for name, sample in parts.items()},
        "repeats": samples,
    }
    write_result(options.result, document)
    print(json.dumps(summary(samples), indent=1))


def made_up() -> list[FakeGpu]:
    """Cards with some memory in use each."""
    return [
        FakeGpu(
            name=f"Fake GPU {index}",
            uuid=f"GPU-{index:08}-0000-0000-0000-000000000000",
            used=(index + 1) * 2**30,
        )
        for index in range(DEVICES)
    ]


@contextmanager
def sleepers(count: int) -> Iterator[list[int]]:
    """The ids of so many processes that do nothing, ended with the block."""
    processes = [subprocess.Popen(["sleep", "600"]) for _ in range(count)]
    try:
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


class StillHost(HostMeter):
    """Read once: costs nothing after that."""

    def __init__(self) -> None:
        super().__init__()
        self._reading = super().read()

    def read(self) -> HostReading:
        return self._reading


def sampled(
    group: GpuDevices, host: HostMeter, pids: Sequence[int], seconds: float
) -> dict[str, float]:
    """The meter's processor time and readings while nothing else of this process runs."""
    readings = 0

    class Workers:
        def resident(self) -> dict[int, int]:
            nonlocal readings
            readings += 1
            return {rank: resident(pid) for rank, pid in enumerate(pids)}

        def held(self, *, with_libraries: bool) -> dict[int, int]:
            return {}

    with MemorySampler(group, host, Workers()):
        readings = 0
        started, spent = time.monotonic(), time.process_time()
        time.sleep(seconds)
        spent, passed = time.process_time() - spent, time.monotonic() - started
    return {
        "share_of_a_core": spent / passed,
        "readings_per_second": readings / passed,
        "processor_seconds_per_reading": spent / max(1, readings),
    }


def summary(samples: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The median, and whether all of them hold the contract."""
    shares = [sample["share_of_a_core"] for sample in samples]
    return {
        "share_of_a_core": statistics.median(shares),
        "highest_share_of_a_core": max(shares),
        "readings_per_second": statistics.median(s["readings_per_second"] for s in samples),
        "holds_the_contract": max(shares) <= CONTRACT,
    }


if __name__ == "__main__":
    main()
