"""`python -m chatlm`, and the console script `chatlm`: the command."""

import signal
import sys

from chatlm import PARTS, require_parts


def main() -> None:
    """Runs the command; exits with 1 where a part of chatlm is shadowed, with 130 after Ctrl-C."""
    signal.signal(signal.SIGINT, _interrupt_once)
    try:
        require_parts(*PARTS)
        from autotune import terminal
    except KeyboardInterrupt:
        sys.exit(130)
    with terminal.standard_outputs():
        try:
            import cli

            cli.main()
        except KeyboardInterrupt:  # while it imports; `cli` has the rest
            terminal.write("chatlm: interrupted\n", sys.stderr)
            sys.exit(130)


def _interrupt_once(number: int, _: object) -> None:
    """Until `cli` handles the signals: a second one does not interrupt the end."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
