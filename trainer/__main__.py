"""`python -m trainer`: settles what must be settled before the first import, then trains."""

import sys

from autotune.workers.launch import reexec_with_environment

reexec_with_environment("trainer", sys.argv[1:])

from trainer.launch.process import main  # noqa: E402  after `release_cached`: the user's folder may hold a profiles/

if __name__ == "__main__":
    main()
