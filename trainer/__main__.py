"""`python -m trainer`: one training process."""

import signal
import sys

from autotune.workers.launch import reexec_with_environment


def main() -> None:
    """Restarts the process with the variables that memory depends on, where they are missing; then trains."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a traceback, until `StopSignal` is there
    reexec_with_environment("trainer", sys.argv[1:])
    from trainer.launch import entry  # after the restart: the user's folder may hold a profiles/

    entry.main()


if __name__ == "__main__":
    main()
