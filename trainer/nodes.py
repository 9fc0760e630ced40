"""What several processes, perhaps on several nodes, must have in common before they train as one.

Nodes need not share a file system: each has its own token cache, and only the main process writes the
run's folder. But all must train the same rows in the same way, and go on from the same checkpoint.
"""

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from autotune.errors import OutputError, UsageError
from trainer.run_folder import RunFolder
from trainer.settings import TrainSettings
from trainer.store import TokenStore

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
                    f"than the main process ({_said(value)}); start every node with the same flags, "
                    f"profile and data"
                )


def shared_checkpoints(accelerator: Accelerator, folder: RunFolder) -> list[Path]:
    """The main process's checkpoints, the oldest first: the same list on every process.

    Raises:
        OutputError: on every process, when one does not see what the main process goes on from.
    """
    own = [path.name for path in folder.checkpoints()]
    main = seen_by_all(folder.path, _of_all(accelerator, (socket.gethostname(), own)))
    return [folder.path / name for name in main]


def seen_by_all(folder: Path, ranks: Sequence[tuple[str, list[str]]]) -> list[str]:
    """The main process's checkpoints, when every process sees the last of them; see above."""
    _, main = ranks[0]
    for rank, (host, seen) in enumerate(ranks):
        if main and main[-1] not in seen:
            raise OutputError(
                f"process {rank} on {host} does not see {folder / main[-1]}, from which the main "
                f"process goes on; put --output-dir on a folder that all nodes share, copy the "
                f"checkpoint to the same place on each node, or start anew with --fresh"
            )
    return main


def _of_all(accelerator: Accelerator, value: Any) -> list[Any]:
    """One value a process, the main process's first."""
    if accelerator.num_processes == 1:
        return [value]
    gathered: list[Any] = gather_object([value])
    return gathered


def _said(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) < 60 else f"{text[:60]}…"
