"""Checks that all processes, perhaps on several nodes, train the same rows with the same settings.

Nodes need no shared file system: each has its own token cache, and only the main process uses the
run's folder.
"""

import socket
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from autotune.errors import UsageError
from trainer.config.settings import TrainSettings
from trainer.run.parts import Parts

OWN = ("model", "data", "eval_data", "output_dir", "profile", "others")
"""Paths and other settings of a node, which may differ."""


def check_alike(accelerator: Accelerator, settings: TrainSettings, parts: Parts) -> None:
    """Raises UsageError on every process if one has other settings or rows than the main process."""
    values = settings.as_json()
    own = {**values.pop("workload"), **values}
    own = {name: value for name, value in own.items() if name not in OWN}
    collators = (parts.collator, parts.eval_collator)
    own["rows"] = [None if each is None else each.store.folder.name for each in collators]
    if accelerator.num_processes > 1:
        compare(gather_object([(socket.gethostname(), own)]))


def compare(ranks: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Raises UsageError for the first rank whose settings differ from rank 0's; a rank is (host, settings)."""
    _, main = ranks[0]
    for rank, (host, other) in enumerate(ranks):
        for name, value in main.items():
            if other[name] != value:
                raise UsageError(
                    f"process {rank} on {host} has other {name.replace('_', ' ')} "
                    f"({_as_text(other[name])}) than the main process ({_as_text(value)})",
                    "start every node with the same flags, profile and data",
                )


def _as_text(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) < 60 else f"{text[:60]}…"
