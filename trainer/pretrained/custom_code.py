"""A model's own Python code: what would run it, whether it ran, and the files beside an export.

transformers calls it remote code, in a folder too. `auto_map` in config.json and
tokenizer_config.json names it: for each of transformers' auto classes `file.Class`, or
`owner/repository--file.Class`.
"""

import ast
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.tokenization_auto import (
    get_tokenizer_config,
    tokenizer_class_from_name,
)

from autotune import files
from autotune.errors import ModelError

CONFIGS = ("config.json", "tokenizer_config.json")
REFUSAL = "custom code which must be executed"
"""A part of transformers' error where code is needed and may not run."""


def refused(name: str, error: Exception) -> ModelError | None:
    """The error where transformers refused to run code, None for other errors."""
    return refusal(name) if REFUSAL in str(error) else None


def refusal(name: str) -> ModelError:
    """The error for a model that does not load without its own code."""
    configs = (PreTrainedConfig.get_config_dict(name)[0], get_tokenizer_config(name))
    references = [each for config in configs for each in _references(config.get("auto_map"))]
    return ModelError(
        f"{name} needs Python code of its own ({_file_names(references)}), which is not run by default",
        "read the code, and give --trust-remote-code if you trust it",
    )


def check_tokenizer_class(name: str) -> None:
    """Raises ModelError where a tokenizer has a class of its own.

    If the model's kind is known, transformers takes that kind's class instead, and the same text would
    become other tokens.
    """
    auto_map = get_tokenizer_config(name).get("auto_map") or {}
    own = auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else auto_map
    for reference in _references(own):
        if tokenizer_class_from_name(reference.rpartition(".")[2].removesuffix("Fast")) is None:
            raise refusal(name)


def code_notice(name: str, model: Any, tokenizer: Any, *, trusted: bool) -> str | None:
    """A line about a model's own code: that it ran, or that it was not needed; None without any."""
    ran = [
        type(each)
        for each in (model.config, model, tokenizer)
        if type(each).__module__.startswith("transformers_modules")
    ]
    if ran:
        classes = ", ".join(kind.__name__ for kind in ran)
        names = sorted({f"{kind.__module__.rpartition('.')[2]}.py" for kind in ran})
        return f"running Python code of {name}: {', '.join(names)} ({classes})"
    references = list(_references(getattr(model.config, "auto_map", None)))
    if trusted or not references:
        return None
    return (
        f"{name} has Python code of its own ({_file_names(references)}), which is not run: "
        f"transformers' {type(model).__name__} is trained; --trust-remote-code runs it"
    )


def complete_code(folder: Path, base: Path | None) -> None:
    """Makes each `auto_map` in a written model's folder work: copies its files, or removes the entry.

    `base` is the folder that the model was read from. References to a hub repository stay.
    """
    for config in (folder / name for name in CONFIGS):
        values = json.loads(config.read_text("utf-8")) if config.exists() else {}
        if "auto_map" not in values:
            continue
        missing = {
            reference
            for reference in _references(values["auto_map"])
            if "--" not in reference and not _brought(_file_of(reference), folder, base)
        }
        if missing:
            values["auto_map"] = _without(values["auto_map"], missing)
            if not values["auto_map"]:
                del values["auto_map"]
            config.write_text(f"{json.dumps(values, indent=2, ensure_ascii=False)}\n", "utf-8")


def _brought(name: str, folder: Path, base: Path | None) -> bool:
    """Whether that file is in the folder now, with the files that it imports relatively."""
    if (folder / name).exists():  # transformers copies the code that ran
        return True
    if base is None or not files.is_inside(name):
        return False
    found = _with_imports(base / name, base)
    for file in found:
        target = folder / file.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return bool(found)


def _with_imports(file: Path, base: Path) -> list[Path]:
    """The file and those of the folder that it imports relatively, directly or not; none if it is not there."""
    found: list[Path] = []
    waiting = [file]
    while waiting:
        file = waiting.pop()
        if file in found or not file.is_file() or not file.resolve().is_relative_to(base.resolve()):
            continue
        found.append(file)
        for node in _nodes(file):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                place = file.parent.joinpath(*(node.module or "").split("."))
                names = [place / f"{alias.name}.py" for alias in node.names]
                waiting += [place.with_suffix(".py"), place / "__init__.py", *names]
    return found


def _nodes(file: Path) -> list[ast.AST]:
    """The syntax of a file that is not run; none where it is of another Python, or none at all."""
    try:
        return list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _without(auto_map: Any, missing: set[str]) -> Any:
    """The map without those references; a tokenizer has a pair, the slow class and the fast one."""
    if isinstance(auto_map, dict):
        kept = {kind: _without(value, missing) for kind, value in auto_map.items()}
        return {kind: value for kind, value in kept.items() if value}
    if isinstance(auto_map, list):
        pair = [None if reference in missing else reference for reference in auto_map]
        return pair if any(pair) else None
    return None if auto_map in missing else auto_map


def _references(auto_map: Any) -> Iterator[str]:
    """Each `file.Class`, once or more; the map is a dict, a pair or nothing."""
    if isinstance(auto_map, str):
        yield auto_map
    elif isinstance(auto_map, dict | list | tuple):
        for value in auto_map.values() if isinstance(auto_map, dict) else auto_map:
            yield from _references(value)


def _file_of(reference: str) -> str:
    """`my_model.MyModel` is in my_model.py."""
    return f"{reference.rpartition('.')[0]}.py"


def _file_names(references: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(_file_of(each).replace("--", ": ") for each in references))
