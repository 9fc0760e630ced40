"""What is said when shared memory is short, and when nothing is."""

from pathlib import Path

import pytest

from autotune.devices.shared_memory import free_shared_memory, shortage

MIB = 2**20
GIB = 2**30


def test_shared_memory_is_what_is_free_there(tmp_path: Path) -> None:
    """Without such a folder there is none to speak of, rather than none left."""
    free = free_shared_memory(tmp_path)

    assert free is not None
    assert free > 0
    assert free_shared_memory(tmp_path / "absent") is None


def test_dockers_default_is_short_for_two_ranks_and_their_loaders() -> None:
    """The line names the amount, the need and each cure that helps."""
    assert shortage(64 * MIB, nccl_ranks=2, loader_workers=4) == (
        "64 MiB free in /dev/shm, and 6 processes may want 384 MiB: in Docker, run with "
        "--shm-size 1g, or set NCCL_SHM_DISABLE=1 or use --backend gloo, or use no loader workers"
    )


def test_a_cure_that_would_not_help_is_not_named() -> None:
    """NCCL's for NCCL, the loader's for the loader."""
    by_nccl = shortage(GIB // 16, nccl_ranks=2, loader_workers=0)
    by_loader = shortage(None, nccl_ranks=0, loader_workers=1)

    assert by_nccl is not None
    assert "loader" not in by_nccl
    assert by_loader == (
        "there is no /dev/shm, and 1 process may want 64 MiB: in Docker, run with --shm-size 1g, "
        "or use no loader workers"
    )


@pytest.mark.parametrize(
    ("free", "nccl_ranks", "loader_workers"),
    [(GIB, 2, 4), (64 * MIB, 0, 1), (128 * MIB, 2, 0), (0, 0, 0), (None, 0, 0)],
)
def test_with_enough_or_no_use_for_it_nothing_is_said(
    free: int | None, nccl_ranks: int, loader_workers: int
) -> None:
    """One process without loader workers, or with gloo, needs none."""
    assert shortage(free, nccl_ranks=nccl_ranks, loader_workers=loader_workers) is None
