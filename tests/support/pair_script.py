"""One of two gloo processes that run every script for two, one after another: they load torch once.

torchrun --nproc-per-node 2 -m tests.support.pair_script FOLDER
"""

import json
import sys
from pathlib import Path
from typing import Any

from tests.support import (
    answering_script,
    diverged_script,
    finite_script,
    sharded_script,
    sparse_script,
)
from tests.support.tiny import engine, tiny

SCRIPTS = {
    "answering": answering_script.main,
    "finite": finite_script.main,
    "sparse": sparse_script.main,
}


def found_by(script: str, pair: Path) -> list[Any]:
    """What the two processes found, by rank."""
    return [json.loads((pair / f"{script}-{rank}.json").read_text()) for rank in (0, 1)]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    rank = engine(tiny("t5")).accelerator.process_index
    for name, main in SCRIPTS.items():
        (folder / f"{name}-{rank}.json").write_text(json.dumps(main()))
    sharded_script.main(folder)
    message = diverged_script.main(folder)
    (folder / f"diverged-{rank}.json").write_text(json.dumps(message))
