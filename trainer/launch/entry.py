"""What `python -m trainer` runs: the supervised process, or the standalone one."""

import signal
import sys
import threading

from autotune.devices.allocator import HostMemory
from autotune.devices.processes import without_collection
from autotune.terminal import clean_standard_outputs
from autotune.workers.channel import Wire
from autotune.workers.messages import Loaded
from trainer.config.settings import TrainSettings
from trainer.events import Stop, ToTrainer, Train


def main() -> None:
    """Trains; the exit status is 0 done, 1 an error that the user can fix, 130 interrupted."""
    wire = Wire[ToTrainer].from_environment(ToTrainer)
    if wire is not None:
        clean_standard_outputs()
        train_supervised(wire)
    else:
        from trainer.launch.standalone import train_standalone  # its flags load typer

        sys.exit(train_standalone())


def train_supervised(wire: Wire[ToTrainer]) -> None:
    """Trains under `chatlm train`: the wire brings the settings, and takes events and errors."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    request = wire.receive()
    assert isinstance(request, Train)
    settings = TrainSettings.from_json(request.settings)
    go = threading.Event()
    threading.Thread(target=_listen, args=(wire, go, stop), daemon=True).start()
    try:
        with without_collection():  # seconds of imports
            from trainer.run.loop import train

        HostMemory.tell = lambda libraries: wire.send(Loaded(libraries=libraries))
        HostMemory.exclude_libraries()
        train(settings, wire.send, confirm=go.wait, should_stop=stop.is_set)
    except Exception as error:  # noqa: BLE001  sent to the supervisor, whatever it is
        wire.fail(error)


def _listen(wire: Wire[ToTrainer], go: threading.Event, stop: threading.Event) -> None:
    while True:
        (stop if isinstance(wire.receive(), Stop) else go).set()
