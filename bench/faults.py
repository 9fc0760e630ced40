"""One of two ranks runs out of memory, is killed or hangs: does the search end, how, and when?

    python -m bench.faults --result bench/results/faults-cpu.json

The trainer's own step on two gloo processes; rank 1 misbehaves at micro-batch 6, once or always.
`build` is the workload that does so.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.commands import CHATLM, write_result
from bench.processes import started_with

if TYPE_CHECKING:
    from trainer.workload import SftWorkload

FAULTS = {
    "oom": ("oom", False),
    "kill once": ("kill", True),
    "kill always": ("kill", False),
    "hang once": ("hang", True),
    "hang always": ("hang", False),
}
"""By name: what happens, and whether it happens only once."""
AT = 6
"""The size from which on rank 1 misbehaves."""
ROOT = Path(__file__).parent.parent


def build(settings: dict[str, Any]) -> "SftWorkload":
    """The trainer's workload, whose steps fail on rank 1 as CHATLM_FAULT says."""
    from trainer.workload import build as build_sft

    workload = build_sft(settings)
    accumulate = workload.forward_backward

    def faulty(size: int) -> Any:
        if size >= AT and os.environ["RANK"] == "1":
            misbehave(os.environ["CHATLM_FAULT"], Path(os.environ["CHATLM_FAULT_DONE"]))
        return accumulate(size)

    workload.forward_backward = faulty  # type: ignore[method-assign]
    return workload


def misbehave(fault: str, done: Path) -> None:
    """Fails in earnest: an allocation beyond any memory, a SIGKILL, a sleep without end."""
    import torch

    what, is_once = FAULTS[fault]
    if is_once and done.exists():
        return
    done.touch()
    match what:
        case "oom":
            torch.empty(2**44)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(3600)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args()
    write_result(options.result, {"at": AT, "faults": [run(fault) for fault in FAULTS]})


def run(fault: str) -> dict[str, Any]:
    """One tuning with that fault: its exit code, answer or error, seconds, and what it left."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "CHATLM_FAULT": fault,
            "CHATLM_FAULT_DONE": str(Path(folder) / "done"),
        }
        started = time.monotonic()
        done = subprocess.run(
            [
                *CHATLM, "autotune", "--num-processes", "2", "--device", "cpu", "--vram-limit",
                "2GiB", "--max-batch", "8", "--max-source-length", "64", "--max-target-length",
                "64", "--workload", "bench.faults:build", "--json",
            ],
            cwd=folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        seconds = time.monotonic() - started
        left = started_with(environment["CHATLM_FAULT_DONE"])
    document = json.loads(done.stdout) if done.returncode == 0 else {}
    found = {
        "fault": fault,
        "exit_code": done.returncode,
        "micro_batch_size": document.get("micro_batch_size"),
        "error": None if done.returncode == 0 else done.stderr.strip().splitlines()[-1],
        "seconds": round(seconds, 1),
        "processes_left": len(left),
    }
    sys.stderr.write(f"{found}\n")
    return found


if __name__ == "__main__":
    main()
