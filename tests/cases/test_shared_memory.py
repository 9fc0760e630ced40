"""Too little shared memory for NCCL and the loaders is said before anything is started."""

import pytest

from autotune.devices.host import HostMeter
from autotune.devices.selection import open_devices
from tests.support.fake_nvml import FakeDriver, FakeGpu
from trainer.config.options import Backend
from trainer.supervisor.job import shared_memory_notice

TOO_MANY = 10**6
"""Loaders for which no machine has shared memory."""


@pytest.mark.parametrize(
    ("group", "backend", "cure"),
    [(2, None, "set NCCL_SHM_DISABLE=1"), (2, "gloo", None), (1, None, None)],
    ids=["NCCL", "gloo", "one card"],
)
def test_what_will_lack_shared_memory_is_said_with_its_cure(
    group: int, backend: Backend | None, cure: str | None
) -> None:
    """NCCL's cure only where NCCL talks: not over gloo, not on one card."""
    gpus = [FakeGpu(uuid=f"GPU-{n}") for n in range(group)]
    with (
        FakeDriver(gpus),
        open_devices("cuda", num_processes=None, vram_limit=None, host=HostMeter()) as devices,
    ):
        said = shared_memory_notice(devices, backend, loaders=TOO_MANY)

    assert said is not None
    assert "in Docker, run with --shm-size" in said
    assert "use no loader workers" in said
    assert ("NCCL" in said) == (cure is not None)
    assert cure is None or cure in said


def test_one_process_without_loaders_needs_none() -> None:
    """Nothing is said, however small /dev/shm is."""
    with open_devices("cpu", num_processes=1, vram_limit=None, host=HostMeter()) as devices:
        assert shared_memory_notice(devices, None, loaders=0) is None
