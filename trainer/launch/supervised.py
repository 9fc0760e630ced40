"""A training process under `chatlm train`: receives its settings over the wire and sends events."""

import signal
import threading
import traceback

from autotune.tuning.probe_worker import failed
from autotune.workers.channel import Wire
from trainer.config.settings import TrainSettings
from trainer.events import Stop, ToTrainer, Train
from trainer.launch.process import leave, start


def train_supervised(wire: Wire[ToTrainer]) -> None:
    """Trains; the process exits with 0 when done, with 1 on an error, which it sends first."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    request = wire.receive()
    assert isinstance(request, Train)
    settings = TrainSettings.from_json(request.settings)
    go = threading.Event()
    threading.Thread(target=_listen, args=(wire, go, stop), daemon=True).start()
    try:
        start(settings, wire.send, go.wait, stop.is_set)
    except Exception as error:  # noqa: BLE001  sent to the supervisor, whatever it is
        traceback.print_exc()
        wire.send(failed(error))
        leave()


def _listen(wire: Wire[ToTrainer], go: threading.Event, stop: threading.Event) -> None:
    while True:
        (stop if isinstance(wire.receive(), Stop) else go).set()
