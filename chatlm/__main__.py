"""`python -m chatlm`, and the console script `chatlm`: the command."""

import sys

from chatlm import check_parts


def main() -> None:
    """Runs the command; exits with 1 where a part of chatlm is shadowed."""
    try:
        check_parts()
    except ImportError as error:
        sys.exit(f"chatlm: {error}")
    import cli

    cli.main()


if __name__ == "__main__":
    main()
