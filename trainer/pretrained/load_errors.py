"""The error for a model or tokenizer that did not load: what it is, and what to do.

The libraries' errors have few types, so their text is matched; tests quote it.
"""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer

from autotune.errors import ModelError
from trainer.pretrained.sources import ADAPTER_CONFIG, SAVE_BOTH, presets_near, vocabulary_files

SAMPLE = "Hello world 1234 你好 Привет"
PACKAGES = {"google": "protobuf"}
"""Packages whose name differs from the module's."""


def check_vocabulary_is_there(name: str, tokenizer: Any) -> None:
    """Raises ModelError for a tokenizer that transformers made without a vocabulary.

    It makes one where the files are missing, and all text becomes the unknown token. ByT5 and CANINE
    need no file: their vocabulary is bytes or characters.
    """
    added = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    if len(set(tokenizer.get_vocab()) - added) < 2:  # T5's has one: the mark of a word's beginning
        raise no_tokenizer(name)


def check_tokens(name: str, tokenizer: Any) -> str | None:
    """A line where transformers makes other tokens than tokenizer.json says; None where it does not.

    For some kinds of models (Qwen2) transformers 5 takes their own class for any tokenizer.json, and splits
    text as that class does.

    Raises:
        ModelError: it makes none of a word, which would not be learnt.
    """
    file, backend = Path(name) / "tokenizer.json", getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not file.is_file():
        return None
    own = Tokenizer.from_file(str(file))

    def tokens(each: Any, text: str) -> list[int]:
        ids: list[int] = each.encode(text, add_special_tokens=False).ids
        return ids

    if tokens(backend, SAMPLE) == tokens(own, SAMPLE):
        return None
    how = f"transformers reads the tokenizer.json of {name} as a {type(tokenizer).__name__}, which makes"
    for word in SAMPLE.split():
        if tokens(own, word) and not tokens(backend, word):
            raise ModelError(
                f"{how} no tokens of {word!r}",
                "give it a tokenizer of that class, or a kind of model that takes any (like llama)",
            )
    return f"{how} other tokens of text than the file says: those are trained"


def no_tokenizer(name: str) -> ModelError:
    return ModelError(f"{name} has a config.json but no tokenizer (tokenizer.json)", SAVE_BOTH)


def tokenizer_error(name: str, error: Exception) -> ModelError:
    """The error for a tokenizer that did not load."""
    folder = Path(name)
    files = list(vocabulary_files(folder))
    if package := _missing_package(error, files):
        return ModelError(
            f"the tokenizer of {name} needs {package}, which is not installed",
            f"run `pip install {package}`",
        )
    if folder.is_dir() and not files:
        return no_tokenizer(name)
    return load_error(name, error)


def load_error(name: str, error: Exception, *, adapter: str | None = None) -> ModelError:
    """The error for a model that did not load: what to install, or what the library says.

    `adapter` is the adapter whose base model it is.
    """
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
    if found := re.search(
        r"Unrecognized configuration class <class '(?:.*\.)?(\w+)Config'>.*?(AutoModel\w+)", text
    ):
        return ModelError(
            f"{name} is no language model that can be trained: transformers has no {found[2]} for a {found[1]}",
            "give a causal or a seq2seq language model, which writes text after text",
        )
    if "Weights only load failed" in text:
        return ModelError(
            f"the weights of {name} are not read: their file holds other things, which may run code",
            "save the model anew with save_pretrained, which writes model.safetensors",
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
    if adapter is not None:
        return ModelError(
            f"{adapter} is an adapter of {name!r}, which is not a folder, and the hub does not give it ({reason})",
            f"get the base model, and write its folder as base_model_name_or_path in {ADAPTER_CONFIG}",
        )
    return ModelError(what, presets_near(name))


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
