"""One training process: what `python -m trainer` runs.

Under `chatlm train` the settings come over the wire; under a launcher of the user's own they are flags, see
`alone`.
"""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable

from autotune.tuning.probe_worker import failure
from autotune.workers.channel import Wire
from trainer.config.launch_environment import overrule
from trainer.config.settings import TrainSettings
from trainer.messages import Say


def main() -> None:
    """Trains; the exit status is 0 done, 1 an error that the user can mend, 130 interrupted."""
    wire = Wire.from_environment()
    if wire is None:
        from trainer.launch.standalone import (
            train_standalone,  # and its flags: a supervised worker has none
        )

        sys.exit(train_standalone())
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    settings = TrainSettings.from_json(wire.messages.get()["settings"])
    go = threading.Event()
    threading.Thread(target=_listen, args=(wire, go, stop), daemon=True).start()
    try:
        start(settings, wire.send, go.wait, stop.is_set)
    except Exception as error:  # noqa: BLE001  told to the supervisor, whatever it is
        traceback.print_exc()
        wire.send(failure(error))
        leave()


def _listen(wire: Wire, go: threading.Event, stop: threading.Event) -> None:
    events = {"go": go, "stop": stop}
    while True:
        events[wire.messages.get()["type"]].set()


def start(
    settings: TrainSettings,
    say: Say,
    confirm: Callable[[], object],
    should_stop: Callable[[], bool],
) -> None:
    """Trains in this process, as `loop.train` does, and says what of a launcher's wishes is not followed."""
    from trainer.run.loop import train  # seconds of imports, after the flags are known to be good

    overruled = overrule(settings.workload, os.environ)
    if overruled and os.environ.get("RANK", "0") == "0":
        say({"type": "notice", "text": overruled})
    train(settings, say, confirm=confirm, should_stop=should_stop)


def leave() -> None:
    """Ends this process at once: the others may hang in a collective, which an exit would wait for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
