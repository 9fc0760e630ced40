"""Runs `chatlm` commands for the benchmarks and reads what they leave; measures nothing itself."""

import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.busy import Moment, others_share

BEGUN = Moment.now()
"""When this program began: its result files say what the machine did besides since then."""
ROOT = Path(__file__).parent.parent
CHATLM = (sys.executable, "-P", "-m", "cli")


def run(*arguments: str) -> None:
    """The command on this terminal, as a user would see it; raises when it fails."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ chatlm {' '.join(words)}", flush=True)
    subprocess.run([*CHATLM, *words], check=True)


def run_json(*arguments: str) -> dict[str, Any]:
    """The JSON document of the command; its lines go to this terminal's stderr."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ chatlm {' '.join(words)} --json", flush=True)
    done = subprocess.run([*CHATLM, *words, "--json"], check=True, stdout=subprocess.PIPE)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The steps of a run."""
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def speed(steps: list[dict[str, Any]]) -> float:
    """Samples per second of the median step, the first one left out."""
    return float(statistics.median(step["samples_per_second"] for step in steps[1:]))


def machine() -> dict[str, Any]:
    """What the figures of a result file depend on."""
    import torch

    from autotune.devices.host import HostMeter

    has_gpu = torch.cuda.is_available()
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": HostMeter().read().total,
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def measured() -> dict[str, Any]:
    """How a result file came about: of which code, in which time, beside how much other work."""
    now = Moment.now()
    return {
        "code": code(),
        "seconds": round(now.clock - BEGUN.clock, 1),
        "others_share": round(others_share(BEGUN, now), 3),
    }


def code() -> str | None:
    """The commit that this is, with a plus where Python files differ from it; None without git."""
    head = git("rev-parse", "--short", "HEAD")
    return head and head.strip() + ("+" if git("status", "--porcelain", "--", "*.py") else "")


def git(*words: str) -> str | None:
    """What git prints in this repository; None if it cannot."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout


def write_result(path: Path, document: dict[str, Any]) -> None:
    """The document with a header; one that names its machine itself keeps it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = document["machine"] if "machine" in document else machine()
    header = {"machine": known, "measured": measured()}
    path.write_text(json.dumps(header | document, indent=1) + "\n")
    print(f"wrote {path}")
