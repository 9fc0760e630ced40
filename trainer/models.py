"""The model of a run and its codec: presets with random weights, local folders, hub ids.

Master weights are float32 whatever the checkpoint holds; precision is the accelerator's business.
"""

import difflib
import hashlib
import json
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

from autotune.errors import ModelError
from trainer.codec import Codec


@dataclass(frozen=True, slots=True)
class Preset:
    """A T5 shape with random weights."""

    shape: dict[str, int]
    learning_rate: float
    vocabulary: int | None = None
    """None takes the bundled tokenizer's."""


PRESETS = {
    "chatlm-0.2b": Preset(
        {
            "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_heads": 12,
            "num_layers": 10, "num_decoder_layers": 10,
        },
        learning_rate=3e-4,
        vocabulary=29298,
    ),
    "chatlm-tiny": Preset(
        {
            "d_model": 128, "d_kv": 32, "d_ff": 512, "num_heads": 4,
            "num_layers": 2, "num_decoder_layers": 2,
        },
        learning_rate=3e-3,
    ),
}  # fmt: skip
PRETRAINED_LEARNING_RATE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model on the CPU, and what goes with it."""

    model: PreTrainedModel
    codec: Codec
    learning_rate: float
    """The default for this model."""
    identity: str
    """Name and a hash of the configuration."""


def load_model(name: str, *, dropout: float | None, seed: int) -> Loaded:
    """The preset, folder or hub model of that name, in float32.

    Raises:
        ModelError: there is no such model, or its folder lacks a configuration, weights or tokenizer.
    """
    if name in PRESETS:
        return _preset(name, dropout, seed)
    if Path(name).is_dir():
        _check_folder(Path(name))
    try:
        config = AutoConfig.from_pretrained(name)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        _set_dropout(config, dropout)
        model = kind.from_pretrained(name, config=config, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(_why_not(name, error)) from error
    codec = Codec(tokenizer, is_causal=not config.is_encoder_decoder)
    return Loaded(
        model=model,
        codec=codec,
        learning_rate=PRETRAINED_LEARNING_RATE,
        identity=_identity(name, config),
    )


def _preset(name: str, dropout: float | None, seed: int) -> Loaded:
    preset = PRESETS[name]
    tokenizer = AutoTokenizer.from_pretrained(str(resources.files("trainer") / "assets/tokenizer"))
    special: dict[str, Any] = {**preset.shape, "decoder_start_token_id": tokenizer.pad_token_id}
    config = T5Config(
        vocab_size=preset.vocabulary or len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        feed_forward_proj="relu",
        **special,
    )
    _set_dropout(config, dropout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(config)
    return Loaded(
        model=model,
        codec=Codec(tokenizer, is_causal=False),
        learning_rate=preset.learning_rate,
        identity=_identity(name, config),
    )


_DROPOUTS = (
    "dropout_rate", "dropout", "attention_dropout", "activation_dropout",
    "resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout", "classifier_dropout",
)  # fmt: skip


def _set_dropout(config: Any, dropout: float | None) -> None:
    if dropout is None:
        return
    for key in _DROPOUTS:
        if isinstance(getattr(config, key, None), float | int):
            setattr(config, key, dropout)


def _identity(name: str, config: Any) -> str:
    values = config.to_dict()
    volatile = ("transformers_version", "_name_or_path", *_DROPOUTS)
    text = json.dumps(
        {k: v for k, v in values.items() if k not in volatile}, sort_keys=True, default=str
    )
    label = Path(name).name if Path(name).is_dir() else name
    return f"{label} {hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is no model folder: it has no config.json")
    weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    if not weights:
        raise ModelError(f"{folder} has a config.json but no weights (*.safetensors)")


def _why_not(name: str, error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if Path(name).is_dir():
        return f"cannot load the model in {name}: {reason}"
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"presets: {', '.join(PRESETS)}"
    return f"{name!r} is no preset, no folder, and not to be had from the hub ({reason}); {hint}"
