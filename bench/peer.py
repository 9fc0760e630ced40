"""One tuner of `bench.peers` in a process of its own, so that each starts alike.

Every tuner gets the trainer's own step and nothing else of ours: no probe, no search. What each try
came to is written down as it happens, one JSON line a try, so that a tuner that dies leaves its tries.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TextIO

from autotune.devices.allocator import HostMemory, is_out_of_memory
from autotune.tuning.probe import Load

STEPS = 3
"""Optimizer steps a try; Lightning's default."""
ROUNDS = 3
"""How often each size is timed, in turns, after one round that warms up."""


class Memory(Protocol):
    """The part of `DeviceMemory` that is read here."""

    def reset_peak(self) -> None: ...
    def peak(self) -> int: ...


class Workload(Protocol):
    """The part of the trainer's workload that makes a step."""

    @property
    def memory(self) -> Memory: ...
    @property
    def workload_info(self) -> Mapping[str, Any]: ...
    def forward_backward(self, size: int) -> Load: ...
    def optimizer_step(self) -> object: ...


class Steps:
    """The workload's step, with every try written down: three steps of one size, or an error."""

    def __init__(self, build: Callable[[], Workload], out: TextIO) -> None:
        self._build = build
        self._workload: Workload | None = build()
        self._out = out
        self._peaks: list[int] = []
        self._started = 0.0

    @property
    def workload_info(self) -> Mapping[str, Any]:
        assert self._workload is not None
        return self._workload.workload_info

    def build_anew(self) -> None:
        """The model and all around it as in a fresh start; the old one is gone before."""
        self._workload = None
        gc.collect()
        self._workload = self._build()

    def step(self, size: int) -> None:
        """One optimizer step; the third, or an error, ends the try."""
        assert self._workload is not None
        memory = self._workload.memory
        if not self._peaks:
            self._started = time.perf_counter()
        memory.reset_peak()
        try:
            self._workload.forward_backward(size)
            self._workload.optimizer_step()
        except Exception as error:
            self._peaks.append(memory.peak())
            self._end(size, "oom" if is_out_of_memory(error) else "failed", repr(error))
            raise
        self._peaks.append(memory.peak())
        if len(self._peaks) == STEPS:
            self._end(size, "ran", None)

    def run(self, size: int) -> None:
        """One whole try."""
        for _ in range(STEPS):
            self.step(size)

    def runs(self, size: int) -> bool:
        """One whole try; False when it was out of memory."""
        try:
            self.run(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            gc.collect()
        return True

    def _end(self, size: int, outcome: str, error: str | None) -> None:
        tried = {
            "size": size,
            "outcome": outcome,
            "peak_bytes": max(self._peaks),
            "seconds": time.perf_counter() - self._started,
            "error": error and error[:200],
        }
        self._peaks = []
        write(self._out, tried)


Tuner = Callable[[Steps, int, int], int]
"""The steps, the ceiling and the rows of the data; returns the tuner's answer."""


def accelerate(steps: Steps, ceiling: int, rows: int) -> int:
    """`find_executable_batch_size` as its documentation has it, from the ceiling down.

    The function that it decorates builds model, optimizer and loaders itself, at each try anew.
    """
    from accelerate.utils import find_executable_batch_size

    def train(batch_size: int) -> int:
        steps.build_anew()
        steps.run(batch_size)
        return batch_size

    answer: int = find_executable_batch_size(train, starting_batch_size=ceiling)()
    return answer


def lightning(steps: Steps, ceiling: int, rows: int, mode: str) -> int:
    """`Tuner.scale_batch_size` with its defaults, but for the ceiling (`max_val`).

    The module holds one number instead of the model, so that the checkpoints which Lightning writes
    and reads cost it nothing; stepping that number's optimizer is how it counts optimizer steps.
    """
    import torch

    pl: Any = import_module("lightning.pytorch")

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.batch_size = 1
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([self.weight], lr=0.0)

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(range(rows), batch_size=self.batch_size)  # type: ignore[arg-type]

        def training_step(self, batch: object) -> None:
            steps.step(self.batch_size)
            self.optimizers().step()

    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1000,  # a try ends after its steps, over however many epochs
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        answer: int = pl.tuner.Tuner(trainer).scale_batch_size(
            Module(), mode=mode, steps_per_trial=STEPS, max_val=ceiling
        )
    return answer


def power(steps: Steps, ceiling: int, rows: int) -> int:
    return lightning(steps, ceiling, rows, "power")


def binsearch(steps: Steps, ceiling: int, rows: int) -> int:
    return lightning(steps, ceiling, rows, "binsearch")


def bisection(steps: Steps, ceiling: int, rows: int) -> int:
    """Doubling until a size is out of memory, then halving the gap; 0 when nothing runs."""
    low, high = 0, ceiling + 1
    while high - low > 1:
        doubling = high > ceiling
        size = min(max(1, 2 * low), ceiling) if doubling else (low + high) // 2
        if steps.runs(size):
            low = size
        else:
            high = size
    return low


TUNERS: dict[str, Tuner] = {
    "accelerate": accelerate,
    "power": power,
    "binsearch": binsearch,
    "bisection": bisection,
}


def sweep(steps: Steps, sizes: list[int]) -> None:
    """Tries the sizes one after another, whatever becomes of each."""
    for size in sizes:
        steps.runs(size)


def time_sizes(workload: Workload, sizes: list[int], out: TextIO) -> None:
    """Samples per second of each size: the median of steps that were timed in turns."""
    speeds: dict[int, list[float]] = {size: [] for size in sizes}
    for turn in range(ROUNDS + 1):
        for size in sizes:
            started = time.perf_counter()
            load = workload.forward_backward(size)
            workload.optimizer_step()
            if turn > 0:
                speeds[size].append(load.samples / (time.perf_counter() - started))
    for size, found in speeds.items():
        write(out, {"size": size, "samples_per_second": statistics.median(found), "all": found})


def write(out: TextIO, line: Mapping[str, Any]) -> None:
    out.write(json.dumps(line) + "\n")
    out.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tuner", choices=(*TUNERS, "sweep", "speed"))
    parser.add_argument("--settings", type=json.loads, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ceiling", type=int)
    parser.add_argument("--sizes", type=int, nargs="*", default=())
    options = parser.parse_args()
    from trainer.workload import build

    if options.tuner in ("power", "binsearch"):
        import_module("lightning.pytorch")
    HostMemory.exclude_libraries()
    settings = dict(options.settings)
    if options.tuner == "speed":
        settings["memory_limit"] = None
    with options.out.open("w") as out:
        if options.tuner == "speed":
            time_sizes(build(settings), options.sizes, out)
            return
        steps = Steps(lambda: build(settings), out)
        if options.tuner == "sweep":
            sweep(steps, options.sizes)
        else:
            rows = steps.workload_info["rows"]
            assert isinstance(rows, int)
            answer = TUNERS[options.tuner](steps, options.ceiling, rows)
            write(out, {"answer": answer})


if __name__ == "__main__":
    main()
