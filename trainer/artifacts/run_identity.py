"""Whether a folder's run is the one that a command means, by its key of settings."""

import json
from typing import Any

from autotune.errors import shortened
from trainer.artifacts.run_record import RunRecord

LONGER = (
    "its learning rates depend on its length, so the length cannot change: finish it as it was, then "
    "train on with --model {folder} and another --output-dir, or "
)


def as_known(run_key: dict[str, Any], known: RunRecord) -> dict[str, Any]:
    """The key as the record writes it, where the two mean the same.

    JSON reads a tuple back as a list. The run.toml gives the run's learning rate as the user's choice,
    even if it was the model's default or a scaled one.
    """
    run_key = json.loads(json.dumps(run_key))
    rate = known.learning_rate
    if rate is not None and (run_key["learning_rate"], run_key["rate_scale"]) == (rate, 1.0):
        same = {name: known.identity.get(name) for name in ("learning_rate", "rate_scale")}
        return {**run_key, **same}
    return run_key


def difference(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, str]:
    """The first setting that differs, as `name old, now new`, and further advice."""
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict) and old[key] != value:
            return difference(old[key], value)
        if old.get(key) != value:
            then, now = shortened(str(old.get(key))), shortened(str(value))
            what = f"{key.replace('_', ' ')} {then}, now {now}"
            return what, LONGER if key in ("max_steps", "epochs") else ""
    return "other settings", ""
