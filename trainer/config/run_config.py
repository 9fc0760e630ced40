"""A run's choices as TOML, with the flags' names as keys: `chatlm train --config run.toml` repeats it."""

import difflib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import TypeAdapter, ValidationError

import profiles
from autotune import files
from autotune.choices import MODEL_PRESET_NAMES
from autotune.errors import OutputError, UsageError
from trainer.config.options import TrainOptions
from trainer.config.settings import TrainSettings

OF_ONE_START = ("fresh", "trust_remote_code")
"""Choices that belong to one start, not to the run: no run.toml holds them."""


def load_run(path: Path) -> dict[str, Any]:
    """The file's choices by the names of `TrainOptions`; keys may have dashes or underscores.

    Raises:
        UsageError: it cannot be read, is not TOML, has an unknown key, or a value of another type.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read --config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path} is not TOML: {error}", "fix it") from error
    known = [field.name for field in fields(TrainOptions)]
    chosen: dict[str, Any] = {}
    for key, value in document.items():
        name = key.replace("-", "_")
        if name in chosen:
            both = f"{name.replace('_', '-')} and {name}"
            raise UsageError(f"--config {path} has {both}, which are one key", "keep one")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            keys = [key for key in known if key != "trust_remote_code"]
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(keys)}"
            raise UsageError(f"--config {path} has an unknown key {name}", hint)
        if name == "trust_remote_code":
            raise UsageError(
                f"--config {path} has {key}, and no file may ask to run a model's code",
                "remove it there, and give --trust-remote-code on the command line",
            )
        chosen[name] = value
    options = _checked(chosen, path)
    given = {name: getattr(options, name) for name in chosen}
    for name in ("data", "eval_data"):
        if given.get(name):
            given[name] = tuple(files.find_beside(each, path.parent) for each in given[name])
    if given.get("profile") and Path(given["profile"]).suffix == ".toml":
        given["profile"] = files.find_beside(given["profile"], path.parent)
    if given.get("model") and given["model"] not in MODEL_PRESET_NAMES:
        given["model"] = files.find_beside(given["model"], path.parent)
    return given


def _checked(chosen: Mapping[str, Any], path: Path) -> TrainOptions:
    """The options, each value checked against its type and its closed choice."""
    try:
        # as JSON, where strict mode takes a list for a tuple but no text for a number
        return TypeAdapter(TrainOptions).validate_json(json.dumps(chosen, default=str), strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        reason = fault["msg"][0].lower() + fault["msg"][1:]
        raise UsageError(f"--config {path}: {place} is {fault['input']!r}: {reason}") from error


def save_run(folder: Path, settings: TrainSettings, learning_rate: float) -> None:
    """Writes `run.toml` and the `profile.toml` that it names; together they repeat the run.

    `learning_rate` is the run's peak.

    Raises:
        OutputError: no space, or no permission.
    """
    profile = profiles.load(settings.profile)
    profiles.save(profile, folder / "profile.toml")
    world_size = settings.world_size
    is_its_own = (
        settings.micro_batch_sizes is not None  # the profile's, perhaps halved
        or settings.plan(world_size) == profile.plan(world_size)
    )
    values = {
        **asdict(settings.workload.located),
        **asdict(settings),
        "eval_data": tuple(map(files.absolute, settings.eval_data)),
        "profile": str((folder / "profile.toml").absolute()),
        "output_dir": str(folder.absolute()),
        "micro_batch": None if is_its_own else settings.micro_batch,
        "learning_rate": learning_rate,
        "num_processes": world_size,
        # explicit, since the profile may have another value
        "freeze": settings.workload.freeze or "none",
        "lora_rank": settings.workload.lora_rank or 0,
    }
    names = [field.name for field in fields(TrainOptions) if field.name not in OF_ONE_START]
    chosen = {name: values[name] for name in names if values.get(name) not in (None, ())}
    text = tomli_w.dumps({k: list(v) if isinstance(v, tuple) else v for k, v in chosen.items()})
    try:
        files.write_text(folder / "run.toml", text)
    except OSError as error:
        raise OutputError(
            f"cannot write to {folder}: {error.strerror}",
            "free some space, or choose another --output-dir",
        ) from error
