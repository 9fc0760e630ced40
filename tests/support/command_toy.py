"""The toy under `chatlm autotune`, whose settings it takes, on the fake card of its rank or on the CPU.

Named by path, `tests.support.command_toy:build`. `CHATLM_TOY` holds more settings of the toy as JSON.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.toy_workload import MIB, ToyWorkload, toy

TOY = ("--workload", "tests.support.command_toy:build")


def uuid_of(environ: Mapping[str, str]) -> str:
    """The card that a worker with this environment computes on."""
    rank = int(environ.get("LOCAL_RANK", "0"))
    shown = environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")
    return f"GPU-{int(shown[rank]):08}-0000-0000-0000-000000000000"


def build(settings: dict[str, Any]) -> ToyWorkload:
    """A toy of 3 MiB a sample, and as many samples as the data files have lines."""
    device = uuid_of(os.environ) if settings["device"] == "cuda" else "cpu"
    chosen = json.loads(os.environ.get("CHATLM_TOY", "{}"))
    own = toy(**{"per_size": 3 * MIB, "device": device, **chosen})
    workload = ToyWorkload({**own, "memory_limit": settings["memory_limit"]})
    info, files = workload.workload_info, settings["data"]
    info["rows"] = sum(len(Path(f).read_text().splitlines()) for f in files) or info["rows"]
    info |= {"model": settings["model"], "precision": "fp32"}
    info["fingerprint"] = {
        "model": settings["model"], "torch": "2", "longest_source": 7, "longest_target": 9,
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
    }  # fmt: skip
    return workload
