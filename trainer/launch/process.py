"""What both kinds of training process share: the start of the run, and an immediate exit."""

import os
import sys
from collections.abc import Callable

from autotune.devices.processes import without_collection
from autotune.events import Notice
from trainer.config.launch_environment import overrule
from trainer.config.settings import TrainSettings
from trainer.events import Say


def start(
    settings: TrainSettings,
    say: Say,
    confirm: Callable[[], object],
    should_stop: Callable[[], bool],
) -> None:
    """Trains in this process, as `loop.train` does, and says which settings of the launcher it does not follow."""
    with without_collection():  # seconds of imports, after the flags are known to be good
        from trainer.run.loop import train

    overruled = overrule(settings.workload, os.environ)
    if overruled and os.environ.get("RANK", "0") == "0":
        say(Notice(text=overruled))
    train(settings, say, confirm=confirm, should_stop=should_stop)


def leave() -> None:
    """Ends this process at once: the others may hang in a collective, which an exit would wait for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
