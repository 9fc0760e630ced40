"""Where a model's files are: a folder, a hub id, or an adapter's folder and its base model.

It reads no weights. A folder or name that cannot be a model is refused here, with what to do.
"""

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from autotune.errors import ModelError
from trainer.pretrained.presets import BUNDLED_TOKENIZER, MODEL_PRESETS

WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
"""Files of a whole model's weights. An adapter's are called `adapter_model`."""
FIRST = ("model.safetensors", "pytorch_model.bin")
"""transformers begins with one of these, or with its `.index.json`."""
VOCABULARIES = (
    "tokenizer.json", "vocab.*", "*.model", "*.spm", "*.tiktoken", "tekken.json",
)  # fmt: skip
ADAPTER_CONFIG = "adapter_config.json"
GENERATION_CONFIG = "generation_config.json"
ADAPTER_WEIGHTS = "adapter_model.*"
LFS_POINTER = b"version https://git-lfs.github.com/"
OTHER_WEIGHTS = {
    "*.gguf": "GGUF, which is quantised",
    "*.onnx": "ONNX", "onnx/*.onnx": "ONNX", "*.h5": "TensorFlow's", "*.msgpack": "Flax's",
    "consolidated*": "the maker's own format", "*-of-*": "one of several, and their index.json is missing",
    "*.safetensors": "another name", "*.bin": "another name",
}  # fmt: skip
"""Files of weights that are not read, and what they are."""
SAVE_BOTH = "save the model and its tokenizer there, both with save_pretrained"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Folders or hub ids to read a model from."""

    base: str
    """Configuration and weights."""
    tokenizer: str
    adapter: str | None = None
    """A peft adapter that is merged into the weights."""


def find_source(name: str) -> Source:
    """Where the model of that name is: a preset, a folder or a hub id.

    Raises:
        ModelError: there is no such model; its folder lacks a configuration; an adapter's base model is not
            found, or peft is not installed.
    """
    if name in MODEL_PRESETS:
        return Source(base=name, tokenizer=BUNDLED_TOKENIZER)
    folder = Path(name)
    if not folder.is_dir():
        _check_hub_id(name)
        return Source(base=name, tokenizer=name)
    _check_files(folder)
    if (folder / ADAPTER_CONFIG).is_file():
        base = _base_of(name, _object_in(folder / ADAPTER_CONFIG))
        if not any(folder.glob(ADAPTER_WEIGHTS)):
            raise ModelError(
                f"{name} has an {ADAPTER_CONFIG} but no weights (adapter_model.safetensors)",
                "copy the folder again, or save the adapter anew with save_pretrained",
            )
        has_own = any(vocabulary_files(folder)) or (folder / "tokenizer_config.json").is_file()
        return Source(base=base, tokenizer=name if has_own else base, adapter=name)
    _check_folder(folder)
    return Source(base=name, tokenizer=name)


def _object_in(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text("utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no object")
        return values
    except ValueError as error:
        raise ModelError(f"{file} is damaged ({error})", "copy the folder again") from error


def _base_of(name: str, config: dict[str, Any]) -> str:
    """The folder or hub id of the adapter's base model."""
    base, folder = config.get("base_model_name_or_path"), Path(name)
    key = f"base_model_name_or_path in its {ADAPTER_CONFIG}"
    if not base or base in MODEL_PRESETS:
        merged = folder.resolve().parent
        is_ours = (merged / "config.json").is_file()
        raise ModelError(
            f"{name} is an adapter, and its base model is not known: {key} is empty",
            f"give --model {merged}, the merged model"
            if is_ours
            else "write the folder or hub id of its base model there",
        )
    if find_spec("peft") is None:
        raise ModelError(
            f"{name} is an adapter, and peft, which reads it, is not installed",
            "run `pip install peft`",
        )
    for place in (Path(base), folder / base):
        if place.is_dir():
            if (place / ADAPTER_CONFIG).is_file():
                raise ModelError(
                    f"{name} is an adapter of {base}, which is an adapter too",
                    "merge that one into its base model first (peft: merge_and_unload)",
                )
            _check_folder(place)
            return str(place)
    if _is_path(base):
        raise ModelError(
            f"{name} is an adapter of {base}, and there is no such folder",
            f"put its base model there, or write the folder where it is as {key}",
        )
    return str(base)


def _check_files(folder: Path) -> None:
    """Raises ModelError where git has left a pointer in place of a large file: its readers say other things."""
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        with file.open("rb") as stream:
            if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                raise ModelError(
                    f"{file} is a pointer of Git LFS, not the file itself",
                    f"run `git lfs pull` in {folder}, or download the model again",
                )


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is not a model folder: it has no config.json",
            f"give --model a folder that save_pretrained wrote, or a preset: {', '.join(MODEL_PRESETS)}",
        )
    if (file := folder / GENERATION_CONFIG).is_file():
        _object_in(
            file
        )  # transformers goes on without a damaged one, and the maker's ends are lost


def weight_files(base: str) -> list[Path]:
    """The files of a folder's weights, in order; none of a hub id.

    Raises:
        ModelError: it is a folder without weights.
    """
    folder = Path(base)
    found = sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))
    begins = any(
        (folder / f"{name}{end}").is_file() for name in FIRST for end in ("", ".index.json")
    )
    if folder.is_dir() and not (found and begins):
        raise _no_weights(folder)
    return found


def _no_weights(folder: Path) -> ModelError:
    what = f"{folder} has a config.json but no weights (model.safetensors)"
    for pattern, kind in OTHER_WEIGHTS.items():
        for file in sorted(folder.glob(pattern)):
            return ModelError(
                f"{what}; {file.relative_to(folder)} is not read ({kind})",
                "give the folder of the same model that save_pretrained wrote",
            )
    return ModelError(what, SAVE_BOTH)


def _check_hub_id(name: str) -> None:
    """Raises ModelError for a name that no hub has; a request would take half a minute."""
    if Path(name).is_file():
        raise ModelError(
            f"{name} is a file, and a model is a folder", f"give --model {Path(name).parent}"
        )
    if _is_path(name) or Path(name).exists():
        raise ModelError(f"there is no model folder {name}", presets_near(name))
    if difflib.get_close_matches(name, MODEL_PRESETS, n=1, cutoff=0.8):
        raise ModelError(f"there is no model {name!r}", presets_near(name))


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


def vocabulary_files(folder: Path) -> Iterator[Path]:
    return (file for pattern in VOCABULARIES for file in folder.glob(pattern))


def presets_near(name: str) -> str:
    near = difflib.get_close_matches(name, MODEL_PRESETS, n=1)
    return f"did you mean {near[0]}?" if near else f"presets: {', '.join(MODEL_PRESETS)}"
