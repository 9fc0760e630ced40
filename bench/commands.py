"""Runs `chatlm` commands for the benchmarks and reads what they leave; measures nothing itself."""

import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def write_result(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **document}, indent=1) + "\n")
    print(f"wrote {path}")
