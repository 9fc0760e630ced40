"""What both kinds of training process share: starting the run, and ending the process at once."""

import os
import sys
from collections.abc import Callable

from trainer.config.launch_environment import overrule
from trainer.config.settings import TrainSettings
from trainer.messages import Say


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
