"""One training process: what `python -m trainer` runs.

Under `chatlm train` the settings come over the wire. Under a launcher of the user's own
(`accelerate launch -m trainer --profile tuned`, torchrun; see docs/nodes.md) they are flags, and what
happens is printed: lines of JSON from the main process alone, all else on standard error.
"""

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import profiles
from autotune.channel import Wire
from autotune.errors import ChatlmError, UsageError
from autotune.memory import is_out_of_memory
from autotune.worker import failure
from trainer.faults import advice
from trainer.flags import parse
from trainer.launchers import overrule, wants_cpu, world_size
from trainer.messages import Say
from trainer.options import TrainOptions
from trainer.resolve import resolve
from trainer.run_file import load_run
from trainer.settings import TrainSettings
from trainer.tokenise import Interrupted


def main() -> None:
    """Trains; the exit status is 0 done, 1 an error that the user can mend, 130 interrupted."""
    wire = Wire.from_environment()
    if wire is None:
        sys.exit(_alone())
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    settings = TrainSettings.from_json(wire.messages.get()["settings"])
    go = threading.Event()
    threading.Thread(target=_listen, args=(wire, go, stop), daemon=True).start()
    try:
        _train(settings, wire.send, go.wait, stop.is_set)
    except Exception as error:  # noqa: BLE001  told to the supervisor, whatever it is
        traceback.print_exc()
        wire.send(failure(error))
        _leave()


def _listen(wire: Wire, go: threading.Event, stop: threading.Event) -> None:
    events = {"go": go, "stop": stop}
    while True:
        events[wire.messages.get()["type"]].set()


def _train(
    settings: TrainSettings,
    say: Say,
    confirm: Callable[[], object],
    should_stop: Callable[[], bool],
) -> None:
    from trainer.loop import train  # seconds of imports, after the flags are known to be good

    overruled = overrule(settings.workload, os.environ)
    if overruled and os.environ.get("RANK", "0") == "0":
        say({"type": "notice", "text": overruled})
    train(settings, say, confirm=confirm, should_stop=should_stop)


class Stop:
    """A signal's wish to end: heeded after a step, or at once where none was taken yet.

    A second signal is none of impatience: SLURM and a terminal reach a worker both themselves and
    through its launcher.
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


def _alone() -> int:
    should_stop = Stop()
    try:
        settings = _parse(sys.argv[1:])
    except ChatlmError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # its neighbours have the same flags and files
            sys.stderr.write(f"chatlm: {error}\n")
        return 1
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print there too, NCCL for one
    interrupted = False

    def say(message: Mapping[str, Any]) -> None:
        nonlocal interrupted
        interrupted = interrupted or bool(message.get("interrupted"))
        lines.write(json.dumps(message) + "\n")
        lines.flush()

    try:
        _train(settings, say, lambda: None, should_stop)
    except Interrupted as error:
        sys.stderr.write(f"chatlm: {error}; the same command goes on from there\n")
        return 130
    except Exception as error:  # noqa: BLE001  told to the user, whatever it is
        tell(error)
        _leave()
    return 130 if interrupted else 0


def tell(error: Exception) -> None:
    """Says what went wrong, and what to try where that is known."""
    if isinstance(error, ChatlmError):
        sys.stderr.write(f"chatlm: {error}\n")
        return
    traceback.print_exception(error)
    if is_out_of_memory(error):
        sys.stderr.write("chatlm: out of memory; use a smaller --micro-batch\n")
    elif known := advice(f"{type(error).__name__}: {error}"):
        sys.stderr.write(f"chatlm: {known}\n")


def _leave() -> None:
    """Ends this process at once: the others may hang in a collective, which an exit would wait for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _parse(arguments: list[str]) -> TrainSettings:
    """The settings from the flags of `chatlm train`, as far as they concern a process of its own.

    How many processes there are is the launcher's to say: a run file's number is another launch's.
    """

    def read(path: Path) -> dict[str, Any]:
        return {**load_run(path), "num_processes": None}

    options = TrainOptions(
        **parse(TrainOptions, arguments, program="trainer", help=__doc__, read=read)
    )
    processes = world_size(os.environ)
    if options.num_processes not in (None, processes):
        raise UsageError(
            f"--num-processes {options.num_processes}, but the launcher started {processes}; leave it "
            f"out, and tell the launcher (torchrun --nproc-per-node), or use `chatlm train`"
        )
    return resolve(
        profiles.load(options.profile),
        options,
        device=_default_device() if options.device == "auto" else options.device,
        world_size=processes,
    )


def _default_device() -> str:
    if wants_cpu(os.environ):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
