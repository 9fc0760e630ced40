"""`python -m chatlm`, and the console script `chatlm`: the command."""

import sys

from chatlm import PARTS, require_parts


def main() -> None:
    """Runs the command; exits with 1 where a part of chatlm is shadowed, with 130 after Ctrl-C."""
    try:
        require_parts(*PARTS)
        import cli

        cli.main()
    except KeyboardInterrupt:  # while it imports; `cli` has the rest
        sys.stderr.write("chatlm: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
