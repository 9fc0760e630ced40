"""Models and encoders by name: a preset, a folder of the user's, an adapter's folder, or a hub id.

Weights are loaded in float32. Whatever is missing or does not belong together is an error, never a
random weight. The files around the weights are kept for the export (`original`).
"""

import copy
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from autotune.devices.allocator import is_out_of_memory
from autotune.errors import ModelError
from trainer.data.encoder import Encoder
from trainer.data.token_store import TokenStore
from trainer.pretrained.custom_code import check_tokenizer_class, code_notice, refused
from trainer.pretrained.kinds import check_kind
from trainer.pretrained.load_errors import (
    check_tokens,
    check_vocabulary_is_there,
    load_error,
    tokenizer_error,
)
from trainer.pretrained.original import KeptTokenizer, Original
from trainer.pretrained.presets import MODEL_PRESETS
from trainer.pretrained.sources import Source, find_source
from trainer.pretrained.weights import read_model, stored_dtype

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
    original: Original
    learning_rate: float
    config_hash: str
    """Name and a hash of the configuration."""
    notices: tuple[str, ...] = ()
    """What the user should know of how it was loaded."""

    @property
    def encoder(self) -> Encoder:
        return self.original.encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What is read before any weights."""

    source: Source
    config: Any
    tokenizer: KeptTokenizer
    encoder: Encoder
    notice: str | None
    """What the user should know of the tokenizer."""


def load_encoder(name: str, *, trust_remote_code: bool = False) -> Encoder:
    """The encoder of a model; reads its configuration and its tokenizer, no weights.

    Raises:
        ModelError: as `load_model` does, where it is not about weights.
    """
    return _load_head(name, trust_remote_code).encoder


def load_model(
    name: str, *, dropout: float | None, seed: int, trust_remote_code: bool = False
) -> Loaded:
    """The preset, folder, adapter or hub model of that name, in float32.

    Raises:
        ModelError: there is no such model; its folder lacks a configuration, weights or tokenizer; a
            package is missing; or it needs code of its own and may not run it.
    """
    head = _load_head(name, trust_remote_code)
    config = head.config
    own_dropouts = {key: getattr(config, key) for key in DROPOUTS if hasattr(config, key)}
    _set_dropout(config, dropout)
    notices: list[str | None] = [head.notice]
    if name in MODEL_PRESETS:
        dtype = torch.float32
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: Any = T5ForConditionalGeneration(config)
    else:
        dtype = stored_dtype(head.source, config)
        model = read_model(head.source, config, notices, trust_remote_code=trust_remote_code)
        tokenizer = head.tokenizer.tokenizer
        notices.append(code_notice(head.source.base, model, tokenizer, trusted=trust_remote_code))
    written = copy.deepcopy(model.config)
    for key, rate in own_dropouts.items():
        setattr(written, key, rate)
    base = Path(head.source.base)
    preset = MODEL_PRESETS.get(name)
    return Loaded(
        model=model,
        original=Original(
            config=written,
            generation_config=copy.deepcopy(model.generation_config),
            encoder=head.encoder,
            tokenizer=head.tokenizer,
            dtype=dtype,
            folder=base if base.is_dir() else None,
        ),
        learning_rate=PRETRAINED_LEARNING_RATE if preset is None else preset.learning_rate,
        config_hash=config_hash(name, config),
        notices=tuple(filter(None, notices)),
    )


def _load_head(name: str, trust_remote_code: bool) -> Head:
    source = find_source(name)
    try:
        if name in MODEL_PRESETS:
            config = None
        else:
            config = AutoConfig.from_pretrained(source.base, trust_remote_code=trust_remote_code)
    except Exception as error:  # a damaged file may raise any error of the library that reads it
        if is_out_of_memory(error):
            raise
        raise refused(source.base, error) or load_error(
            source.base, error, adapter=source.adapter
        ) from error
    if config is not None:
        check_kind(source.base, config, is_adapters_base=source.adapter is not None)
    try:
        if not trust_remote_code:
            check_tokenizer_class(source.tokenizer)
        tokenizer: Any = AutoTokenizer.from_pretrained(
            source.tokenizer,
            trust_remote_code=trust_remote_code,
            config=None if source.adapter is None else config,  # an adapter's folder has none
        )
    except Exception as error:
        if isinstance(error, ModelError) or is_out_of_memory(error):
            raise
        raise refused(source.tokenizer, error) or tokenizer_error(
            source.tokenizer, error
        ) from error
    check_vocabulary_is_there(source.tokenizer, tokenizer)
    notice = check_tokens(source.tokenizer, tokenizer)
    kept = KeptTokenizer.of(tokenizer)
    if config is None:
        config = _preset_config(name, tokenizer)
    encoder = Encoder(tokenizer, is_causal=not config.is_encoder_decoder)
    return Head(source=source, config=config, tokenizer=kept, encoder=encoder, notice=notice)


def _preset_config(name: str, tokenizer: Any) -> T5Config:
    preset = MODEL_PRESETS[name]
    special: dict[str, Any] = {**preset.shape, "decoder_start_token_id": tokenizer.pad_token_id}
    config = T5Config(
        vocab_size=preset.vocabulary or len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        feed_forward_proj="relu",
        **special,
    )
    _set_dropout(config, preset.dropout)
    return config


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
