"""`chatlm` beside GPUs that are made up, on a machine without any.

    python tests/support/fake_gpus.py 0,5000000000 autotune --workload tests.support.command_toy:build …

A card for each number, which is what a tenant holds on it. The driver answers the real binding;
a card's memory follows the workers: their resident pages, and a context that torch cannot see.
"""

import os
import sys
from dataclasses import dataclass, field

import cli
from autotune.devices.processes import resident
from tests.support.command_toy import uuid_of
from tests.support.fake_nvml import FakeDriver, FakeGpu
from tests.support.processes import environment_of, workers_of

TOTAL = 8 * 2**30
CONTEXT = 200 * 2**20
"""What a process holds on its card besides what its allocator knows."""


@dataclass(slots=True)
class Card:
    """What is held on one card."""

    uuid: str
    tenant: int
    pids: list[int] = field(default_factory=list)

    def used(self) -> int:
        held = [resident(pid) for pid in self.pids]
        if not all(held) or not held:
            self.pids = [w.pid for w in workers_of(os.getpid()) if self._holds(w.pid)]
            held = [resident(pid) for pid in self.pids]
        return self.tenant + sum(amount + CONTEXT for amount in held if amount)

    def _holds(self, pid: int) -> bool:
        return uuid_of(environment_of(pid)) == self.uuid


def main() -> None:
    """Runs the command line of the remaining arguments."""
    tenants = [int(number) for number in sys.argv[1].split(",")]
    group = [Card(uuid_of({"LOCAL_RANK": str(i)}), held) for i, held in enumerate(tenants)]
    sys.argv = ["chatlm", *sys.argv[2:]]
    with FakeDriver(
        [
            FakeGpu(name=f"Fake GPU {i}", uuid=card.uuid, total=TOTAL, used=card.used)
            for i, card in enumerate(group)
        ]
    ):
        cli.main()


if __name__ == "__main__":
    main()
