"""Loads a run's model and its encoder: presets with random weights, local folders, hub ids.

Master weights are float32 whatever the checkpoint holds; `accelerator` sets the precision.
"""

import difflib
import hashlib
import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from autotune.devices.allocator import is_out_of_memory
from autotune.errors import ModelError
from trainer.data.encoder import Encoder
from trainer.data.token_store import TokenStore


@dataclass(frozen=True, slots=True)
class Preset:
    """A T5 shape with random weights; the decoder has as many layers as the encoder."""

    shape: dict[str, int]
    learning_rate: float
    vocabulary: int | None = None
    """None takes the bundled tokenizer's."""
    dropout: float = 0.1


MODEL_PRESETS = {
    "chatlm-0.2b": Preset(
        {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_heads": 12, "num_layers": 10},
        learning_rate=3e-4, vocabulary=29298,
    ),
    "chatlm-tiny": Preset(
        {"d_model": 128, "d_kv": 32, "d_ff": 512, "num_heads": 4, "num_layers": 2},
        learning_rate=3e-3, dropout=0.0,  # so small a model does not overfit in minutes
    ),
}  # fmt: skip
PRETRAINED_LEARNING_RATE = 1e-4


DROPOUTS = (
    "dropout_rate", "dropout", "hidden_dropout", "resid_pdrop", "attention_dropout",
    "activation_dropout", "embd_pdrop", "attn_pdrop", "classifier_dropout",
)  # fmt: skip
"""Names of the dropout rates in model configurations; the main one of each family comes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model on the CPU, its encoder and its defaults."""

    model: PreTrainedModel
    encoder: Encoder
    learning_rate: float
    config_hash: str
    """Name and a hash of the configuration."""


def load_model(name: str, *, dropout: float | None, seed: int) -> Loaded:
    """The preset, folder or hub model of that name, in float32.

    Raises:
        ModelError: there is no such model, or its folder lacks a configuration, weights or tokenizer.
    """
    if name in MODEL_PRESETS:
        return _preset(name, dropout, seed)
    if Path(name).is_dir():
        _check_folder(Path(name))
    else:
        _check_hub_id(name)
    try:
        config = AutoConfig.from_pretrained(name)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        _set_dropout(config, dropout)
        with_report: Any = kind.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # `_check_weights` names them
            output_loading_info=True,
        )
        model, report = with_report
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # a damaged file may raise any error of the library that reads it
        if is_out_of_memory(error):
            raise
        raise _load_error(name, error) from error
    _check_weights(name, report)
    return Loaded(
        model=model,
        encoder=Encoder(tokenizer, is_causal=not config.is_encoder_decoder),
        learning_rate=PRETRAINED_LEARNING_RATE,
        config_hash=config_hash(name, config),
    )


def _preset(name: str, dropout: float | None, seed: int) -> Loaded:
    preset = MODEL_PRESETS[name]
    tokenizer = AutoTokenizer.from_pretrained(str(resources.files("trainer") / "assets/tokenizer"))
    special: dict[str, Any] = {**preset.shape, "decoder_start_token_id": tokenizer.pad_token_id}
    config = T5Config(
        vocab_size=preset.vocabulary or len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        feed_forward_proj="relu",
        **special,
    )
    _set_dropout(config, preset.dropout if dropout is None else dropout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(config)
    return Loaded(
        model=model,
        encoder=Encoder(tokenizer, is_causal=False),
        learning_rate=preset.learning_rate,
        config_hash=config_hash(name, config),
    )


def _set_dropout(config: Any, dropout: float | None) -> None:
    for key in () if dropout is None else DROPOUTS:
        if isinstance(getattr(config, key, None), float | int):
            setattr(config, key, dropout)


def config_hash(name: str, config: Any) -> str:
    """The model's name and a hash of its configuration; dropout does not count."""
    volatile = ("transformers_version", "_name_or_path", *DROPOUTS)
    values = {key: value for key, value in config.to_dict().items() if key not in volatile}
    text = json.dumps(values, sort_keys=True, default=str)
    label = Path(name).name if Path(name).is_dir() else name
    return f"{label} {hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is not a model folder: it has no config.json",
            f"give --model a folder that save_pretrained wrote, or a preset: {', '.join(MODEL_PRESETS)}",
        )
    for what, patterns in (
        ("weights", ("*.safetensors", "pytorch_model*.bin")),
        # without these files transformers makes an empty tokenizer: all text becomes unknown
        ("tokenizer", ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")),
    ):
        if not any(file for pattern in patterns for file in folder.glob(pattern)):
            raise ModelError(
                f"{folder} has a config.json but no {what} ({patterns[0]})",
                "save the model and its tokenizer there, both with save_pretrained",
            )


def _check_hub_id(name: str) -> None:
    """Raises ModelError for a name that no hub has; a request would take half a minute."""
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists():
        raise ModelError(f"there is no model folder {name}", _presets_near(name))
    if difflib.get_close_matches(name, MODEL_PRESETS, n=1, cutoff=0.8):
        raise ModelError(f"there is no model {name!r}", _presets_near(name))


def _check_weights(name: str, report: Mapping[str, Any]) -> None:
    """Raises ModelError where weights do not match the configuration: they would be random."""
    missing = sorted(report["missing_keys"])
    other = sorted(entry[0] for entry in report["mismatched_keys"])
    if wrong := missing + other:
        raise ModelError(
            f"the weights of {name} do not belong to its config.json: {len(missing)} are missing "
            f"and {len(other)} have another shape (first {wrong[0]})",
            "copy both from one model",
        )


def _load_error(name: str, error: Exception) -> ModelError:
    text = str(error) or type(error).__name__
    reason = textwrap.shorten(text, 200, placeholder=" …").rstrip(".:")
    if Path(name).is_dir():
        hint = "copy the folder again, or save it anew with save_pretrained"
        return ModelError(f"cannot load the model in {name}: {reason}", hint)
    what = f"{name!r} is not a preset or a folder, and the hub does not give it ({reason})"
    return ModelError(what, _presets_near(name))


def _presets_near(name: str) -> str:
    near = difflib.get_close_matches(name, MODEL_PRESETS, n=1)
    return f"did you mean {near[0]}?" if near else f"presets: {', '.join(MODEL_PRESETS)}"


def fingerprint_info(loaded: Loaded, store: TokenStore, world_size: int) -> dict[str, Any]:
    """The part of a profile's fingerprint that needs the loaded model and data."""
    longest_source, longest_target = store.longest()
    return {
        "model": loaded.config_hash,
        "torch": torch.__version__,
        "longest_source": longest_source,
        "longest_target": longest_target,
        "world_size": world_size,
    }
