"""A training process under `chatlm train`: its settings come over the wire, what happens goes back."""

import signal
import threading
import traceback

from autotune.tuning.probe_worker import failure
from autotune.workers.channel import Wire
from trainer.config.settings import TrainSettings
from trainer.launch.process import leave, start


def train_supervised(wire: Wire) -> None:
    """Trains; the process exits with 0 when done, with 1 on an error, which it sends first."""
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
