"""What several processes, perhaps on several nodes, must have in common before they train as one.

Nodes need not share a file system: each has its own token cache, and only the main process writes the
run's folder, from which a resume tells the others. But all must train the same rows in the same way.
"""

import socket
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from autotune.errors import UsageError
from trainer.config.settings import TrainSettings
from trainer.data.token_store import TokenStore

OWN = ("model", "data", "eval_data", "output_dir", "profile", "others")
"""Settings that name places on a node: they may differ where what lies there does not."""


def check_alike(
    accelerator: Accelerator, settings: TrainSettings, stores: Sequence[TokenStore | None]
) -> None:
    """Raises UsageError, on every process, when one of them was told another run than the main one."""
    values = settings.as_json()
    own = {**values.pop("workload"), **values}
    own = {name: value for name, value in own.items() if name not in OWN}
    own["rows"] = [None if store is None else store.folder.name for store in stores]
    compare(_of_all(accelerator, (socket.gethostname(), own)))


def compare(ranks: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Raises UsageError for the first process whose settings are not the main one's; see `check_alike`."""
    _, main = ranks[0]
    for rank, (host, other) in enumerate(ranks):
        for name, value in main.items():
            if other[name] != value:
                raise UsageError(
                    f"process {rank} on {host} has other {name.replace('_', ' ')} ({_said(other[name])}) "
                    f"than the main process ({_said(value)})",
                    "start every node with the same flags, profile and data",
                )


def _of_all(accelerator: Accelerator, value: Any) -> list[Any]:
    """One value a process, the main process's first."""
    if accelerator.num_processes == 1:
        return [value]
    gathered: list[Any] = gather_object([value])
    return gathered


def _said(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) < 60 else f"{text[:60]}…"
