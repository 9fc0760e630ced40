"""Training under a launcher of the user's own: `accelerate launch -m chatlm.trainer --profile tuned`, torchrun.

It takes the flags of `chatlm train`; see docs/nodes.md. The main process prints each event as a line of
JSON; all other output goes to standard error.
"""

import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO, cast

import profiles
from autotune.choices import DeviceKind
from autotune.devices.allocator import HostMemory, is_out_of_memory
from autotune.devices.processes import without_collection
from autotune.errors import ChatlmError, UsageError
from autotune.events import Notice
from autotune.terminal import (
    STANDARD_OUTPUT,
    Output,
    OutputFailed,
    clean_standard_outputs,
    standard_outputs,
    tell_failed_output,
    write,
)
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
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._want)

    def __call__(self) -> bool:
        """Whether to end now; asked after each step."""
        self._takes_steps = True
        return self._is_wanted

    def _want(self, *_: object) -> None:
        is_first, self._is_wanted = not self._is_wanted, True
        if is_first and not self._takes_steps:
            raise SystemExit(130)


class EventLines:
    """Prints each event as a line of JSON. A stream that fails is told once, and the run goes on without it."""

    def __init__(self, stream: TextIO) -> None:
        self.failure: OutputFailed | None = None
        self._lines = cast(TextIO, Output(stream, STANDARD_OUTPUT))

    def __call__(self, event: Progress) -> None:
        if self.failure is not None:
            return
        try:
            write(json.dumps(as_json(event)) + "\n", self._lines)
        except OutputFailed as error:
            self.failure = error
            tell_failed_output(error)

    @property
    def has_failed(self) -> bool:
        """Whether lines are missing that a reader waits for; one that has left, as `head` does, does not."""
        return self.failure is not None and self.failure.errno != errno.EPIPE


def train_standalone() -> int:
    """Trains as the flags say; the exit status is 0 done, 1 an error that the user can fix, 130 interrupted."""
    should_stop = StopSignal()
    with standard_outputs():
        try:
            settings = _parse(sys.argv[1:])
            workload = settings.workload
            how_read = look((*workload.data, *settings.eval_data), workload.columns)
        except ChatlmError as error:
            if os.environ.get("LOCAL_RANK", "0") == "0":  # all ranks fail in the same way
                write(f"chatlm: {error}\n", sys.stderr)
            return 1
        except OutputFailed as error:  # of --help
            tell_failed_output(error)
            return 1
    lines = EventLines(os.fdopen(os.dup(sys.stdout.fileno()), "w"))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print there too, as NCCL does
    clean_standard_outputs()
    interrupted = False

    def say(event: Progress) -> None:
        nonlocal interrupted
        interrupted |= isinstance(event, TrainingEnded) and event.interrupted
        lines(event)

    is_main = os.environ.get("RANK", "0") == "0"
    for text in how_read if is_main else ():
        say(Notice(text=text))
    try:
        with held_folder(settings, say) if is_main else nullcontext():
            # seconds of imports, after the flags are known to be good
            with without_collection():
                from trainer.run.loop import train

            HostMemory.exclude_libraries()
            train(settings, say, confirm=lambda: None, should_stop=should_stop)
    except Interrupted as error:
        write(f"chatlm: {error}; the same command resumes from there\n", sys.stderr)
        return 130
    except Exception as error:  # noqa: BLE001  printed for the user, whatever it is
        tell(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # the other ranks may hang in a collective: do not wait for them at exit
    return 130 if interrupted else int(lines.has_failed)


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


def as_json(event: Progress) -> dict[str, Any]:
    """The object that is printed for an event; scripts read its keys."""
    values = evaluation_record(event) if isinstance(event, Evaluated) else asdict(event)
    values.pop("devices", None)  # of TrainingStarted: only a supervisor knows them
    return {"type": event.type, **values}


def tell(error: Exception) -> None:
    """Prints the error, and what to try where that is known."""
    if isinstance(error, ChatlmError):
        write(f"chatlm: {error}\n", sys.stderr)
        return
    write("".join(traceback.format_exception(error)), sys.stderr)
    if is_out_of_memory(error):
        write("chatlm: out of memory; use a smaller --micro-batch\n", sys.stderr)
    elif known := advice("".join(traceback.format_exception(error))):
        write(f"chatlm: {known}\n", sys.stderr)


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
