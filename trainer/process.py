"""One training process: what `python -m trainer` runs.

Under `chatlm train` the settings come over the wire. Under a launcher of the user's own
(`accelerate launch -m trainer --profile tuned`) they are flags, and what happens is printed.
"""

import argparse
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import profiles
from autotune.channel import Wire
from autotune.errors import ChatlmError
from autotune.memory import is_out_of_memory
from autotune.worker import failure
from trainer.messages import Say
from trainer.settings import Choices, TrainSettings, resolve


def main() -> None:
    """Trains; the exit status is 0 done, 1 an error that the user can mend, 130 interrupted."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    wire = Wire.from_environment()
    if wire is None:
        signal.signal(signal.SIGINT, lambda *_: stop.set())
        sys.exit(_alone(stop))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    settings = TrainSettings.from_json(wire.messages.get()["settings"])
    go = threading.Event()
    threading.Thread(target=_listen, args=(wire, go, stop), daemon=True).start()
    try:
        _train(settings, wire.send, go.wait, stop)
    except Exception as error:  # noqa: BLE001  told to the supervisor, whatever it is
        traceback.print_exc()
        wire.send(failure(error))
        sys.stdout.flush()
        os._exit(1)  # the other ranks may hang in a collective: do not wait for them at exit


def _listen(wire: Wire, go: threading.Event, stop: threading.Event) -> None:
    events = {"go": go, "stop": stop}
    while True:
        events[wire.messages.get()["type"]].set()


def _train(
    settings: TrainSettings, say: Say, confirm: Callable[[], object], stop: threading.Event
) -> None:
    from trainer.loop import train  # seconds of imports, after the flags are known to be good

    train(settings, say, confirm=confirm, should_stop=stop.is_set)


def _alone(stop: threading.Event) -> int:
    interrupted = False

    def say(message: Mapping[str, Any]) -> None:
        nonlocal interrupted
        interrupted = interrupted or bool(message.get("interrupted"))
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    try:
        _train(_parse(sys.argv[1:]), say, lambda: None, stop)
    except ChatlmError as error:
        sys.stderr.write(f"chatlm: {error}\n")
        return 1
    except Exception as error:
        if is_out_of_memory(error):
            sys.stderr.write("chatlm: out of memory; use a smaller --micro-batch\n")
        raise
    return 130 if interrupted else 0


def _parse(arguments: list[str]) -> TrainSettings:
    """The settings from the flags that a run without a supervisor has."""
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    parser.add_argument("--profile", default="tuned")
    parser.add_argument("--model")
    parser.add_argument("--data", action="append", default=[])
    parser.add_argument("--eval-data", action="append", default=[])
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--output-dir")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--scale-lr", choices=("linear", "sqrt"))
    parser.add_argument("--checkpoint-every", type=int)
    parser.add_argument("--eval-every", type=int)
    parser.add_argument("--patience", type=int)
    parser.add_argument("--generate-rows", type=int, default=200)
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--track", action="append", default=[])
    parser.add_argument("--backend", choices=("gloo", "nccl"))
    parser.add_argument("--device", choices=("cuda", "cpu"))
    flags = vars(parser.parse_args(arguments))
    name, device = flags.pop("profile"), flags.pop("device") or _default_device()
    data, eval_data = tuple(flags.pop("data")), tuple(flags.pop("eval_data"))
    track = tuple(flags.pop("track"))
    return resolve(
        profiles.load(name),
        name,
        Choices(data=data, eval_data=eval_data, track=track, **flags),
        device=device,
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
    )


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
