"""TensorBoard and Weights & Biases, through accelerate's trackers.

`config.validation` checks that their packages are installed: accelerate silently skips missing ones.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.config.settings import TrainSettings

PROJECT = "chatlm"


def start_tracking(accelerator: Any, settings: TrainSettings, folder: Path, *, done: int) -> None:
    """Opens the trackers, which write below `folder`, and logs the settings.

    Records of steps after `done`, from before a resume, are dropped where the tracker can.
    """
    if not settings.track:
        return
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)  # else wandb uses another folder
    accelerator.init_trackers(
        PROJECT,
        config=flat(settings.as_json()),
        init_kwargs={
            "tensorboard": {"purge_step": done + 1},
            "wandb": {"dir": str(folder), "name": Path(settings.output_dir).name},
        },
    )


def track(accelerator: Any, group: str, record: Mapping[str, Any]) -> None:
    """Logs the finite numbers of a record under `train` or `evaluation`."""
    figures = {
        f"{group}/{key}": value
        for key, value in record.items()
        if isinstance(value, int | float) and key != "step" and math.isfinite(value)
    }
    accelerator.log(figures, step=record["step"])


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    """Nested settings as `workload/model`; TensorBoard accepts only these types."""
    found: dict[str, int | float | str | bool] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float | str):
            found[prefix + key] = value
        else:
            found[prefix + key] = " ".join(map(str, value)) if value else ""
    return found
