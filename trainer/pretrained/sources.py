"""Where a model's files are: a folder, a hub id, or an adapter's folder and its base model.

It reads no weights. A folder or name that cannot be a model is refused here, with what to do.
"""

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import transformers

from autotune.errors import ModelError
from trainer.pretrained.presets import BUNDLED_TOKENIZER, MODEL_PRESETS

WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
"""Files of a whole model's weights. An adapter's are called `adapter_model`."""
VOCABULARIES = (
    "tokenizer.json", "vocab.*", "*.model", "*.spm", "*.tiktoken", "tekken.json",
)  # fmt: skip
ADAPTER_CONFIG = "adapter_config.json"
SAVE_BOTH = "save the model and its tokenizer there, both with save_pretrained"
PACKAGES = {"google": "protobuf"}
"""Packages whose name differs from the module's."""


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
    if (folder / ADAPTER_CONFIG).is_file():
        base = _base_of(name, _adapter_config(folder))
        has_own = any(_vocabulary_files(folder)) or (folder / "tokenizer_config.json").is_file()
        return Source(base=base, tokenizer=name if has_own else base, adapter=name)
    _check_folder(folder)
    return Source(base=name, tokenizer=name)


def _adapter_config(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / ADAPTER_CONFIG).read_text("utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no object")
        return values
    except ValueError as error:
        raise ModelError(
            f"{folder / ADAPTER_CONFIG} is damaged ({error})", "copy the folder again"
        ) from error


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


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is not a model folder: it has no config.json",
            f"give --model a folder that save_pretrained wrote, or a preset: {', '.join(MODEL_PRESETS)}",
        )


def weight_files(base: str) -> list[Path]:
    """The files of a folder's weights, in order; none of a hub id.

    Raises:
        ModelError: it is a folder without weights.
    """
    folder = Path(base)
    found = sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))
    if folder.is_dir() and not found:
        raise ModelError(f"{folder} has a config.json but no weights (*.safetensors)", SAVE_BOTH)
    return found


def _check_hub_id(name: str) -> None:
    """Raises ModelError for a name that no hub has; a request would take half a minute."""
    if _is_path(name) or Path(name).exists():
        raise ModelError(f"there is no model folder {name}", _presets_near(name))
    if difflib.get_close_matches(name, MODEL_PRESETS, n=1, cutoff=0.8):
        raise ModelError(f"there is no model {name!r}", _presets_near(name))


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def check_vocabulary_is_there(name: str, tokenizer: Any) -> None:
    """Raises ModelError for a tokenizer that transformers made without a vocabulary.

    It makes one where the files are missing, and all text becomes the unknown token. ByT5 and CANINE
    need no file: their vocabulary is bytes or characters.
    """
    added = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    if len(set(tokenizer.get_vocab()) - added) < 2:  # T5's has one: the mark of a word's beginning
        raise _no_tokenizer(name)


def _no_tokenizer(name: str) -> ModelError:
    return ModelError(f"{name} has a config.json but no tokenizer (tokenizer.json)", SAVE_BOTH)


def tokenizer_error(name: str, error: Exception) -> ModelError:
    """The error for a tokenizer that did not load."""
    folder = Path(name)
    files = list(_vocabulary_files(folder))
    if package := _missing_package(error, files):
        return ModelError(
            f"the tokenizer of {name} needs {package}, which is not installed",
            f"run `pip install {package}`",
        )
    if folder.is_dir() and not files:
        return _no_tokenizer(name)
    return load_error(name, error)


def load_error(name: str, error: Exception) -> ModelError:
    """The error for a model that did not load: what to install, or what the library says."""
    if package := _missing_package(error, []):
        return ModelError(
            f"{name} needs {package}, which is not installed", f"run `pip install {package}`"
        )
    text = " ".join(str(error).split()) or type(error).__name__
    reason = text if len(text) < 200 else f"{text[:200].rsplit(' ', 1)[0]} …"
    reason = reason.rstrip(".:")
    if "does not recognize this architecture" in text:
        return ModelError(
            f"cannot load the model in {name}: transformers {transformers.__version__} has none of its "
            f"kind ({reason})",
            "run `pip install -U transformers`, or correct model_type in its config.json",
        )
    if Path(name).is_dir():
        hint = "copy the folder again, or save it anew with save_pretrained"
        return ModelError(f"cannot load the model in {name}: {reason}", hint)
    what = f"{name!r} is not a preset or a folder, and the hub does not give it ({reason})"
    if "does not appear to have a file named config.json" in text:
        return ModelError(
            what,
            f"if it is an adapter, run `hf download {name} --local-dir adapter` and give --model adapter",
        )
    return ModelError(what, _presets_near(name))


def _vocabulary_files(folder: Path) -> Iterator[Path]:
    return (file for pattern in VOCABULARIES for file in folder.glob(pattern))


def _missing_package(error: BaseException, vocabularies: list[Path]) -> str | None:
    """The package to install, from the files and from the error and its causes.

    Without sentencepiece transformers tries tiktoken next, and that is what its error asks for.
    """
    is_read_alone = any(file.name == "tokenizer.json" for file in vocabularies)
    for file in () if is_read_alone else vocabularies:
        if file.suffix in (".model", ".spm") and not _is_tiktoken(file):
            for module, package in (("sentencepiece",) * 2, ("google.protobuf", "protobuf")):
                if not _is_installed(module):
                    return package
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ImportError):
            if isinstance(cause, ModuleNotFoundError) and cause.name:
                module = cause.name.partition(".")[0]
                return PACKAGES.get(module, module)
            for said in (r"pip install (?:-U )?([A-Za-z][\w.-]*\w)", r"requires the (\w+) library"):
                if found := re.search(said, str(cause)):
                    return found[1].lower()
        cause = cause.__cause__ or cause.__context__
    return None


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _is_tiktoken(file: Path) -> bool:
    """Whether it holds tiktoken's lines, a token in base64 and its rank: Llama 3's tokenizer.model does."""
    with file.open("rb") as stream:
        return re.match(rb"[A-Za-z0-9+/=]+ \d+\r?\n", stream.readline(200)) is not None


def _presets_near(name: str) -> str:
    near = difflib.get_close_matches(name, MODEL_PRESETS, n=1)
    return f"did you mean {near[0]}?" if near else f"presets: {', '.join(MODEL_PRESETS)}"
