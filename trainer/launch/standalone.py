"""Training under a launcher of the user's own: `accelerate launch -m chatlm.trainer --profile tuned`, torchrun.

It takes the flags of `chatlm train`; see docs/nodes.md. The main process prints each event as a line of
JSON; all other output goes to standard error.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import profiles
from autotune.choices import DeviceKind
from autotune.devices.allocator import is_out_of_memory
from autotune.devices.processes import without_collection
from autotune.errors import ChatlmError, UsageError
from autotune.events import Notice
from autotune.workers.launch import wants_cpu
from trainer.artifacts.evaluation_log import evaluation_record
from trainer.artifacts.run_folder import RunFolder
from trainer.config.flags import parse
from trainer.config.launch_environment import world_size
from trainer.config.options import TrainOptions
from trainer.config.resolve import resolve
from trainer.config.run_config import load_run
from trainer.config.settings import TrainSettings
from trainer.data.tokenization import Interrupted
from trainer.events import Evaluated, Progress, Say, TrainingEnded
from trainer.reading.readers import look
from trainer.supervisor.failure_advice import advice


class StopSignal:
    """Whether a signal asked to stop: after the step, or at once before the first step.

    A second signal changes nothing: SLURM and a terminal signal a worker both directly and through its launcher.
    """

    def __init__(self) -> None:
        self._is_wanted = self._takes_steps = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._want)

    def __call__(self) -> bool:
        """Whether to end now; asked after each step."""
        self._takes_steps = True
        return self._is_wanted

    def _want(self, *_: object) -> None:
        self._is_wanted = True
        if not self._takes_steps:
            raise SystemExit(130)


def train_standalone() -> int:
    """Trains as the flags say; the exit status is 0 done, 1 an error that the user can fix, 130 interrupted."""
    should_stop = StopSignal()
    try:
        settings = _parse(sys.argv[1:])
        workload = settings.workload
        how_read = look((*workload.data, *settings.eval_data), workload.columns)
    except ChatlmError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # all ranks fail in the same way
            sys.stderr.write(f"chatlm: {error}\n")
        return 1
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print there too, as NCCL does
    interrupted = False

    def say(event: Progress) -> None:
        nonlocal interrupted
        interrupted |= isinstance(event, TrainingEnded) and event.interrupted
        print_event(event, lines)

    is_main = os.environ.get("RANK", "0") == "0"
    for text in how_read if is_main else ():
        say(Notice(text=text))
    try:
        with held_folder(settings, say) if is_main else nullcontext():
            # seconds of imports, after the flags are known to be good
            with without_collection():
                from trainer.run.loop import train

            train(settings, say, confirm=lambda: None, should_stop=should_stop)
    except Interrupted as error:
        sys.stderr.write(f"chatlm: {error}; the same command resumes from there\n")
        return 130
    except Exception as error:  # noqa: BLE001  printed for the user, whatever it is
        tell(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # the other ranks may hang in a collective: do not wait for them at exit
    return 130 if interrupted else 0


@contextmanager
def held_folder(settings: TrainSettings, say: Say) -> Iterator[None]:
    """Holds the run's folder until the block ends; other nodes may not see it.

    Raises:
        OutputError: another process holds it, or it cannot be written.
    """
    folder = RunFolder(Path(settings.output_dir))

    def settle() -> None:
        if (text := folder.settle()) is not None:
            say(Notice(text=text))

    with folder.locked():
        settle()
        try:
            yield
        finally:
            settle()


def print_event(event: Progress, lines: TextIO) -> None:
    """Writes the event as a line of JSON; nothing once the reader has left, as `head` does."""
    try:
        lines.write(json.dumps(as_json(event)) + "\n")
        lines.flush()
    except BrokenPipeError:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), lines.fileno())


def as_json(event: Progress) -> dict[str, Any]:
    """The object that is printed for an event; scripts read its keys."""
    values = evaluation_record(event) if isinstance(event, Evaluated) else asdict(event)
    values.pop("devices", None)  # of TrainingStarted: only a supervisor knows them
    return {"type": event.type, **values}


def tell(error: Exception) -> None:
    """Prints the error, and what to try where that is known."""
    if isinstance(error, ChatlmError):
        sys.stderr.write(f"chatlm: {error}\n")
        return
    traceback.print_exception(error)
    if is_out_of_memory(error):
        sys.stderr.write("chatlm: out of memory; use a smaller --micro-batch\n")
    elif known := advice("".join(traceback.format_exception(error))):
        sys.stderr.write(f"chatlm: {known}\n")


def _parse(arguments: list[str]) -> TrainSettings:
    """The settings from the flags of `chatlm train` that apply here.

    The launcher decides the number of processes; the number in a run file is ignored.
    """
    given = parse(
        arguments, help=__doc__, read=lambda path: {**load_run(path), "num_processes": None}
    )
    options = TrainOptions(**given)
    processes = world_size(os.environ)
    if options.num_processes not in (None, processes):
        raise UsageError(
            f"--num-processes {options.num_processes}, but the launcher started {processes}",
            "leave it out, and tell the launcher (torchrun --nproc-per-node), or use `chatlm train`",
        )
    return resolve(
        profiles.load(options.profile),
        options,
        device=_default_device() if options.device == "auto" else options.device,
        world_size=processes,
    )


def _default_device() -> DeviceKind:
    if wants_cpu(os.environ):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
