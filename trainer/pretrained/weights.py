"""Weights from a folder or the hub: read in float32, whole, under the names that the model has.

An adapter is merged into the weights of its base model.
"""

import copy
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.modeling_utils import get_state_dict_dtype, load_state_dict

from autotune.devices.allocator import is_out_of_memory
from autotune.errors import ModelError
from trainer.pretrained.custom_code import refused
from trainer.pretrained.load_errors import load_error
from trainer.pretrained.sources import ADAPTER_WEIGHTS, Source, weight_files

WRAPPERS = {
    "_orig_mod": "torch.compile",
    "module": "DistributedDataParallel",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
"""Parts that wrappers add to the names of weights, where a checkpoint was saved without unwrapping."""


def read_model(
    source: Source, config: Any, notices: list[str | None], *, trust_remote_code: bool
) -> Any:
    """The model of that configuration with its weights, in float32; adds lines for the user to `notices`.

    Names that a wrapper has prefixed are read without its prefix.

    Raises:
        ModelError: weights are missing or of another shape, or the adapter does not fit.
    """
    name = source.base
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM

    def load(**options: Any) -> tuple[Any, Mapping[str, Any]]:
        with_report: Any = kind.from_pretrained(
            name,
            config=copy.deepcopy(config),
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
        if (added := _added_to_names(report)) is not None:
            pattern, made_by = added
            renamed, report = load(key_mapping=pattern)
            # not `renamed` itself: save_pretrained would write the names as they were
            model.load_state_dict(renamed.state_dict())
            notices.append(f"the weights of {name} have names with {made_by}: read without it")
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise refused(name, error) or load_error(name, error) from error
    _check_weights(source, model, report)
    notices.append(_left_out(name, model, report))
    if source.adapter is None:
        return model
    notices.append(f"the adapter {source.adapter} is merged into its base model {name}")
    return _merged(model, source)


def _added_to_names(report: Mapping[str, Any]) -> tuple[dict[str, str], str] | None:
    """What is added to the names of the weights: transformers' mapping that removes it, and in words."""
    missing, names = report["missing_keys"], report["unexpected_keys"]
    parts = {part for name in names for part in name.split(".")}
    if not missing or not names:
        return None
    if wrappers := [wrapper for wrapper in WRAPPERS if wrapper in parts]:
        made_by = " and ".join(f"{wrapper}. ({WRAPPERS[wrapper]})" for wrapper in wrappers)
        either = "|".join(map(re.escape, wrappers))
        return {rf"(^|\.)(?:(?:{either})\.)+": r"\1"}, made_by
    first = min(missing)
    for name in names:
        if name.endswith(f".{first}"):  # a class of the user's around the model, as Lightning's
            prefix = name.removesuffix(first)
            return {f"^{re.escape(prefix)}": ""}, f"{prefix} in front"
    return None


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
            _resize_for(model, Path(source.adapter))
            adapted = peft.PeftModel.from_pretrained(model, source.adapter)
        if adapted.active_peft_config.is_prompt_learning:
            kind = adapted.active_peft_config.peft_type.value
            raise ModelError(
                f"{source.adapter} is an adapter of kind {kind}, which adds tokens and cannot be merged",
                f"train on from its base model: --model {source.base}",
            )
        # peft's from_pretrained does not tell which weights of the file it has left out; an embedding of
        # modules_to_save is in the file twice
        names = adapted.load_adapter(source.adapter, "default").unexpected_keys
        if left_out := [name for name in names if ".modules_to_save." not in name]:
            raise ValueError(f"it has no place for {len(left_out)} weights (first {left_out[0]})")
        return adapted.merge_and_unload().requires_grad_(True)  # peft has frozen the base model
    except ModelError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"the adapter {source.adapter} does not fit its base model {source.base}: {reason}",
            "give it the base model that it was trained on (base_model_name_or_path in "
            "adapter_config.json)",
        ) from error


def _resize_for(model: Any, adapter: Path) -> None:
    """Resizes the base model's embeddings to those that peft saved: tokens were added before training."""
    file = next(iter(sorted(adapter.glob(ADAPTER_WEIGHTS), reverse=True)))
    own = model.get_input_embeddings().weight
    name = next(name for name, weight in model.named_parameters() if weight is own)
    saved = load_state_dict(str(file), map_location="meta")
    grown = saved.get(f"base_model.model.{name}")
    if grown is not None and len(grown) != len(own):
        model.resize_token_embeddings(len(grown), mean_resizing=False)


def stored_dtype(source: Source, config: Any) -> torch.dtype:
    """The dtype of the checkpoint's weights, as transformers finds it: by configuration, or in a file."""
    files = weight_files(source.base)
    named = config.dtype
    if named is not None:
        return named if isinstance(named, torch.dtype) else getattr(torch, str(named))
    if not files:  # a hub id: its configuration names the dtype of weights that are not float32
        return torch.float32
    try:
        tensors = load_state_dict(str(files[0]), map_location="meta")
    except Exception as error:
        raise load_error(source.base, error) from error
    find: Any = get_state_dict_dtype
    dtype: torch.dtype = find(tensors)
    return dtype


def _check_weights(source: Source, model: Any, report: Mapping[str, Any]) -> None:
    """Raises ModelError where weights do not match the configuration: they would be random."""
    missing = sorted(report["missing_keys"])
    other = sorted(entry[0] for entry in report["mismatched_keys"])
    if not (wrong := missing + other):
        return
    own, (saved, *_) = type(model).__name__, model.config.architectures or [None]
    hint = "copy both from one model"
    if (place := _place_inside(source)) is not None:
        file, key = place
        hint = (
            f"they are in {key!r} of {file}, which a training wrote: load it with torch.load, and save that "
            f"part alone with torch.save"
        )
    elif saved not in (None, own):
        hint = f"config.json says that they are of a {saved}: give a {own}"
    raise ModelError(
        f"the weights of {source.base} do not belong to its config.json: {len(missing)} are missing "
        f"and {len(other)} have another shape (first {wrong[0]})",
        hint,
    )


def _place_inside(source: Source) -> tuple[Path, str] | None:
    """The file and the key of weights inside a training's checkpoint, like Lightning's `{"state_dict": …}`."""
    for file in weight_files(source.base):
        content = load_state_dict(str(file), map_location="meta")
        for key in ("state_dict", "model", "module", "model_state_dict"):
            if isinstance(content.get(key), Mapping):
                return file, key
    return None


def _left_out(name: str, model: Any, report: Mapping[str, Any]) -> str | None:
    """A line about weights that the model has no place for, as those of layers that config.json leaves out."""
    if not (names := sorted(report["unexpected_keys"])):
        return None
    return (
        f"{len(names):,} weights of {name} have no place in a {type(model).__name__} of its config.json "
        f"and are left out (first {names[0]})"
    )
