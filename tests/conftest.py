"""What every test needs: caches of its own, and no hub."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tokens are cached where the session ends, and nothing is asked of the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHATLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
        yield
