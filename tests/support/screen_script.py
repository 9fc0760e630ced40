"""Plays a made-up run on the screen: what `test_dashboard_terminal` runs behind a terminal.

    python tests/support/screen_script.py tuning|training|waiting|failing|warning|thread [--plain]

`waiting` says `ready` in a notice and goes on with readings until a signal ends it. What ended it
is written to the file that SCREEN_SCRIPT_END names, for when there is no terminal left to say it.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from autotune.events import (
    Notice,
    ProbeEnded,
    ProbeStarted,
    ReadingTaken,
    TuningEnded,
    TuningStarted,
)
from autotune.readings import DeviceBudget, DeviceReading, HostReading
from autotune.trial import Trial
from autotune.verdict import Verdict
from dashboard import open_screen
from trainer.events import CheckpointSaved, Evaluated, StepEnded, TrainingEnded, TrainingStarted

MIB = 2**20
GIB = 2**30
CARD = DeviceBudget(
    device="GPU-0", name="Card ünder test", total=8 * GIB, others=GIB, budget=4 * GIB
)


def reading(used: int) -> ReadingTaken:
    device = DeviceReading(
        device="GPU-0", name=CARD.name, total=CARD.total, used=used, utilization=0.97,
        temperature=61.0, power=220.0,
    )  # fmt: skip
    return ReadingTaken(
        devices=(device,), host=HostReading(total=64 * GIB, used=9 * GIB), workers=2 * GIB
    )


def trial(size: int, verdict: Verdict, peak: int | None) -> Trial:
    speed = None if peak is None else 52.1
    return Trial(size=size, verdict=verdict, peak=peak, seconds=4.2, samples_per_second=speed)


def tuning() -> Iterator[object]:
    yield TuningStarted(model="made-up", target=0.625, ceiling=256, devices=(CARD,))
    low, high = 0, 257
    for size, verdict, peak in (
        (1, Verdict.FITS, 530 * MIB),
        (128, Verdict.OOM, None),
        (64, Verdict.OVER, 4596 * MIB),
        (56, Verdict.FITS, 4084 * MIB),
    ):
        yield ProbeStarted(size=size, low=low, high=high)
        yield reading(GIB + (peak or 6 * GIB))
        low, high = (size, high) if verdict is Verdict.FITS else (low, size)
        yield ProbeEnded(trial=trial(size, verdict, peak), low=low, high=high)
    yield TuningEnded(answer=56, interrupted=False, seconds=17.0)


def training(steps: int = 100) -> Iterator[object]:
    yield TrainingStarted(
        model="made-up", rows=12345, first_step=1, steps=steps, effective_batch=64, micro_batch=56,
        accumulation=2, world_size=1, precision="bf16", output_dir="runs/made-up",
    )  # fmt: skip
    for step in range(1, steps + 1):
        yield reading(5 * GIB)
        yield StepEnded(record=record(step))
    yield Evaluated(step=steps, loss=2.25)
    yield CheckpointSaved(step=steps, path="runs/made-up/step-100")
    result = {"steps": steps, "final_loss": 2.04, "seconds": 123.0, "output_dir": "runs/made-up"}
    yield TrainingEnded(result=result, interrupted=False)


def record(step: int) -> dict[str, float]:
    return {
        "step": step, "epoch": step / 50, "samples": 64 * step, "tokens": 8192 * step,
        "target_tokens": 4096 * step, "loss": 2 + 4 / step, "grad_norm": 1.25,
        "learning_rate": 3e-4, "micro_batches": 2, "seconds": 1.25, "samples_per_second": 51.2,
        "tokens_per_second": 6553.6, "padding": 0.12, "device_peak_bytes": 4084 * MIB,
        "host_bytes": 2 * GIB,
    }  # fmt: skip


def waiting() -> Iterator[object]:
    *events, _ = tuning()
    yield from events
    yield Notice(text="ready")
    while True:
        time.sleep(0.05)
        yield reading(4 * GIB)


def warning() -> Iterator[object]:
    *events, last = tuning()
    yield from events
    logging.getLogger("chatlm").warning("a listener failed")
    yield last


def thread() -> Iterator[object]:
    def fail() -> None:
        raise RuntimeError("a thread failed")

    *events, last = tuning()
    yield from events
    failing_thread = threading.Thread(target=fail)
    failing_thread.start()
    failing_thread.join()
    yield last


def failing() -> Iterator[object]:
    yield from list(tuning())[:4]
    raise RuntimeError("the engine failed")


PLAYS = {
    "tuning": tuning,
    "training": training,
    "waiting": waiting,
    "failing": failing,
    "warning": warning,
    "thread": thread,
}


def main(play: str, *options: str) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with open_screen(plain="--plain" in options, stream=sys.stdout) as emit:
        for event in PLAYS[play]():
            emit(event)
    sys.stdout.write("after the screen\n")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:  # as the command line does: a traceback would push the frame away
        sys.exit(130)
    except BaseException as end:
        if "SCREEN_SCRIPT_END" in os.environ:
            Path(os.environ["SCREEN_SCRIPT_END"]).write_text(repr(end), encoding="utf-8")
        raise
