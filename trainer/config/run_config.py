"""A run's choices as TOML, with the flags' names as keys: `chatlm train --config run.toml` repeats it."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import TypeAdapter, ValidationError

import profiles
from autotune import files
from autotune.choices import MODEL_PRESET_NAMES
from autotune.errors import OutputError, UsageError, named, shortened, shown
from profiles.document import parse_toml, read_file
from trainer.config.options import TrainOptions
from trainer.config.settings import TrainSettings

OF_ONE_START = {
    "trust_remote_code": ("ask to run a model's code", "--trust-remote-code"),
    "fresh": ("ask to replace a run", "--fresh"),
    "resume": ("ask to resume a run", "--resume"),
}
"""Keys that belong to one start, not to the run: what a file with them would ask for, and their flags."""


def load_run(path: Path) -> dict[str, Any]:
    """The file's choices by the names of `TrainOptions`; keys may have dashes or underscores.

    Raises:
        UsageError: it cannot be read, is not TOML, has an unknown key, one that belongs to one start, or a
            value of another type.
    """
    file = f"--config {named(path)}"
    try:
        document = parse_toml(read_file(path))
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{file} {error}", "fix it") from error
    known = [field.name for field in fields(TrainOptions) if field.name not in OF_ONE_START]
    chosen: dict[str, Any] = {}
    for key, value in document.items():
        name = key.replace("-", "_")
        if name in chosen:
            both = f"{name.replace('_', '-')} and {name}"
            raise UsageError(f"{file} has {both}, which are one key", "keep one")
        if name in OF_ONE_START:
            what, flag = OF_ONE_START[name]
            hint = f"remove it there, and give {flag} on the command line"
            raise UsageError(f"{file} has {key}, and no file may {what}", hint)
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise UsageError(f"{file} has an unknown key {named(shortened(name))}", hint)
        if has_nul(value):
            raise UsageError(f"{file}: {name} has a NUL character, which no name has", "fix it")
        chosen[name] = value
    options = _checked(chosen, file)
    given = {name: getattr(options, name) for name in chosen}
    for name in ("data", "eval_data"):
        if given.get(name):
            given[name] = tuple(files.find_beside(each, path.parent) for each in given[name])
    if given.get("profile") and Path(given["profile"]).suffix == ".toml":
        given["profile"] = files.find_beside(given["profile"], path.parent)
    if given.get("model") and given["model"] not in MODEL_PRESET_NAMES:
        given["model"] = files.find_beside(given["model"], path.parent)
    return given


def has_nul(value: Any) -> bool:
    """Whether a text, or one in a list, has a NUL character."""
    texts = value if isinstance(value, list) else [value]
    return any(isinstance(text, str) and "\0" in text for text in texts)


def _checked(chosen: Mapping[str, Any], file: str) -> TrainOptions:
    """The options, each value checked against its type and its closed choice."""
    try:
        # as JSON, where strict mode takes a list for a tuple but no text for a number
        return TypeAdapter(TrainOptions).validate_json(json.dumps(chosen), strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in fault["loc"])
        reason = fault["msg"][0].lower() + fault["msg"][1:]
        raise UsageError(f"{file}: {place} is {shown(fault['input'])}: {reason}") from error


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
