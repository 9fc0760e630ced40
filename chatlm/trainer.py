"""`python -m chatlm.trainer`: one training process, as launchers start it; the same as `python -m trainer`."""

import sys

from chatlm import check_parts


def main() -> None:
    """Trains; exits with 1 where a part of chatlm is shadowed."""
    try:
        check_parts()
    except ImportError as error:
        sys.exit(f"chatlm: {error}")
    from trainer.__main__ import main as train

    train()


if __name__ == "__main__":
    main()
