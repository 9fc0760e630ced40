"""Models and encoders by name: a preset, a folder of the user's, an adapter's folder, or a hub id.

Weights are loaded in float32. Whatever is missing or does not belong together is an error, never a
random weight. The files around the weights are kept for the export (`original`).
"""

import copy
import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
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
from transformers.modeling_utils import get_state_dict_dtype, load_state_dict

from autotune.devices.allocator import is_out_of_memory
from autotune.errors import ModelError
from trainer.data.encoder import Encoder
from trainer.data.token_store import TokenStore
from trainer.model.custom_code import REFUSAL, check_tokenizer_class, code_notice, refusal
from trainer.model.original import KeptTokenizer, Original
from trainer.model.presets import MODEL_PRESETS
from trainer.model.sources import (
    WEIGHTS,
    Source,
    check_vocabulary_is_there,
    find_source,
    load_error,
    tokenizer_error,
)

PRETRAINED_LEARNING_RATE = 1e-4


DROPOUTS = (
    "dropout_rate", "dropout", "hidden_dropout", "resid_pdrop", "attention_dropout",
    "activation_dropout", "embd_pdrop", "attn_pdrop", "classifier_dropout",
)  # fmt: skip
"""Names of the dropout rates in model configurations; the main one of each family comes first."""
WRAPPERS = {
    "_orig_mod": "torch.compile",
    "module": "DistributedDataParallel",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
"""Parts that wrappers add to the names of weights, where a checkpoint was saved without unwrapping."""


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
    notices: list[str | None] = []
    if name in MODEL_PRESETS:
        dtype = torch.float32
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: Any = T5ForConditionalGeneration(config)
    else:
        dtype = _stored_dtype(head)
        model = _with_weights(head, notices, trust_remote_code)
        if head.source.adapter is not None:
            model = _merged(model, head.source)
            notices.append(f"the adapter {name} is merged into its base model {head.source.base}")
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
        raise _refused(source.base, error) or load_error(source.base, error) from error
    try:
        if not trust_remote_code:
            check_tokenizer_class(source.tokenizer)
        tokenizer: Any = AutoTokenizer.from_pretrained(
            source.tokenizer,
            trust_remote_code=trust_remote_code,
            config=None if source.adapter is None else config,  # an adapter's folder has none
        )
    except ModelError:
        raise
    except Exception as error:
        raise _refused(source.tokenizer, error) or tokenizer_error(
            source.tokenizer, error
        ) from error
    check_vocabulary_is_there(source.tokenizer, tokenizer)
    kept = KeptTokenizer.of(tokenizer)
    if config is None:
        config = _preset_config(name, tokenizer)
    encoder = Encoder(tokenizer, is_causal=not config.is_encoder_decoder)
    return Head(source=source, config=config, tokenizer=kept, encoder=encoder)


def _refused(name: str, error: Exception) -> ModelError | None:
    """The error where the model needs code of its own, which was not asked for."""
    return refusal(name) if REFUSAL in str(error) else None


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


def _with_weights(head: Head, notices: list[str | None], trust_remote_code: bool) -> Any:
    """The base model with its weights. Names that a wrapper has prefixed are read without its prefix."""
    name = head.source.base
    kind = AutoModelForSeq2SeqLM if head.config.is_encoder_decoder else AutoModelForCausalLM

    def load(**options: Any) -> tuple[Any, Mapping[str, Any]]:
        with_report: Any = kind.from_pretrained(
            name,
            config=copy.deepcopy(head.config),
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # `_check_weights` names them
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            **options,
        )
        model, report = with_report
        return model, report

    try:
        model, report = load()
        if report["missing_keys"] and (prefixes := _wrappers(report["unexpected_keys"])):
            parts = "|".join(map(re.escape, prefixes))
            model, report = load(key_mapping={rf"(^|\.)(?:(?:{parts})\.)+": r"\1"})
            made_by = " and ".join(f"{prefix}. ({WRAPPERS[prefix]})" for prefix in prefixes)
            notices.append(f"the weights of {name} have names with {made_by}: read without it")
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _refused(name, error) or load_error(name, error) from error
    _check_weights(name, report)
    return model


def _wrappers(names: set[str]) -> list[str]:
    """The wrappers whose parts are in those names."""
    parts = {part for name in names for part in name.split(".")}
    return [wrapper for wrapper in WRAPPERS if wrapper in parts]


def _merged(model: Any, source: Source) -> Any:
    """The model with the adapter merged into its weights."""
    import peft

    assert source.adapter is not None
    try:
        with warnings.catch_warnings():
            # peft 0.21 reads an attribute by a name that transformers 5.23 deprecates
            warnings.simplefilter("ignore", FutureWarning)
            # it would train on without a part of the adapter
            warnings.filterwarnings("error", message=".*Found missing adapter keys")
            adapted = peft.PeftModel.from_pretrained(model, source.adapter)
        if adapted.active_peft_config.is_prompt_learning:
            kind = adapted.active_peft_config.peft_type.value
            raise ModelError(
                f"{source.adapter} is an adapter of kind {kind}, which adds tokens and cannot be merged",
                f"train on from its base model: --model {source.base}",
            )
        return adapted.merge_and_unload()
    except ModelError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"the adapter {source.adapter} does not fit its base model {source.base}: {reason}",
            "give it the base model that it was trained on (base_model_name_or_path in "
            "adapter_config.json)",
        ) from error


def _stored_dtype(head: Head) -> torch.dtype:
    """The dtype of the checkpoint's weights, as transformers finds it: by configuration, or in a file."""
    named = head.config.dtype
    if named is not None:
        return named if isinstance(named, torch.dtype) else getattr(torch, str(named))
    files = sorted(file for pattern in WEIGHTS for file in Path(head.source.base).glob(pattern))
    if not files:  # a hub id: its configuration names the dtype of weights that are not float32
        return torch.float32
    try:
        tensors = load_state_dict(str(files[0]), map_location="meta")
    except Exception as error:
        raise load_error(head.source.base, error) from error
    find: Any = get_state_dict_dtype
    dtype: torch.dtype = find(tensors)
    return dtype


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
