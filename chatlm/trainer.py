"""`python -m chatlm.trainer`: one training process, as launchers start it; the same as `python -m trainer`."""

import signal
import sys

from chatlm import require_parts


def main() -> None:
    """Trains; exits with 1 where a part that it imports is shadowed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a traceback, until `StopSignal` is there
    require_parts("autotune")
    from autotune.workers.launch import reexec_with_environment

    reexec_with_environment("chatlm.trainer", sys.argv[1:])
    require_parts("profiles", "trainer")  # after the restart, which leaves the current folder out
    from trainer.launch import entry

    entry.main()


if __name__ == "__main__":
    main()
