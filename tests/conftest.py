"""What every test needs: caches of its own, no hub, and libraries that take the same memory everywhere."""

import os
import site
from collections.abc import Iterator
from pathlib import Path

import pytest

# threads that spin while they wait starve the other half of the tests; read when torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_sessionstart() -> None:
    """Lets the kernel forget the libraries' files, which are read again on use.

    Files that pip has just written lie in its page cache in large pieces, of which a process that maps
    them holds 200 MiB instead of 110: on a card of 1 GiB that the CPU plays, other sizes would fit.
    """
    for folder in site.getsitepackages():
        for library in Path(folder).rglob("*.so*"):
            descriptor = os.open(library, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tokens are cached where the session ends, and nothing is asked of the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHATLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        yield
