"""The trainer's own workload, computed on the CPU and said to be on the fake card of its rank."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autotune.devices.allocator import HostMemory

if TYPE_CHECKING:
    from trainer.workload import SftWorkload


def uuid_of(environ: Mapping[str, str]) -> str:
    """The card that a worker with this environment computes on."""
    rank = int(environ.get("LOCAL_RANK", "0"))
    shown = environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")
    return f"GPU-{int(shown[rank]):08}-0000-0000-0000-000000000000"


class CardMemory(HostMemory):
    """Resident pages that play the memory of a card."""

    def __init__(self, device: str) -> None:
        self.device = device


def build(settings: dict[str, Any]) -> "SftWorkload":
    """The workload of those settings, its device aside."""
    from trainer.workload import build as build_sft

    workload = build_sft({**settings, "device": "cpu"})
    workload.memory = CardMemory(uuid_of(os.environ))
    return workload
