"""What `python -m trainer` runs: the supervised or the standalone process."""

import sys

from autotune.workers.channel import Wire
from trainer.events import ToTrainer
from trainer.launch.supervised import train_supervised


def main() -> None:
    """Trains; the exit status is 0 done, 1 an error that the user can fix, 130 interrupted."""
    wire = Wire[ToTrainer].from_environment(ToTrainer)
    if wire is not None:
        train_supervised(wire)
    else:
        from trainer.launch.standalone import train_standalone  # its flags load typer

        sys.exit(train_standalone())
