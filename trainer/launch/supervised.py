"""A training process under `chatlm train`: receives its settings over the wire and sends events."""

import signal
import threading

from autotune.tuning.probe_worker import fail
from autotune.workers.channel import Wire
from trainer.config.settings import TrainSettings
from trainer.events import Stop, ToTrainer, Train


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
        from trainer.run.loop import train  # seconds of imports

        train(settings, wire.send, confirm=go.wait, should_stop=stop.is_set)
    except Exception as error:  # noqa: BLE001  sent to the supervisor, whatever it is
        fail(wire, error)


def _listen(wire: Wire[ToTrainer], go: threading.Event, stop: threading.Event) -> None:
    while True:
        (stop if isinstance(wire.receive(), Stop) else go).set()
