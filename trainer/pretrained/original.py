"""All of a model's folder but its weights, as its maker saved it: what a run writes back unchanged.

A run changes the configuration (dropout, cache) and the tokenizer (truncation, padding) for itself. An
export and a checkpoint are the maker's files again, with the trained weights.
"""

import copy
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from trainer.data.encoder import Encoder
from trainer.pretrained.custom_code import complete_code


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptTokenizer:
    """A tokenizer with the settings of its tokenizer.json, which encoding turns off."""

    tokenizer: Any
    truncation: dict[str, Any] | None
    padding: dict[str, Any] | None

    @classmethod
    def of(cls, tokenizer: Any) -> Self:
        """To be called before the tokenizer encodes anything."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        return cls(
            tokenizer=tokenizer,
            truncation=getattr(backend, "truncation", None),
            padding=getattr(backend, "padding", None),
        )

    def save(self, folder: Path) -> None:
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        if self.truncation is not None:
            backend.enable_truncation(**self.truncation)
        if self.padding is not None:
            backend.enable_padding(**self.padding)
        try:
            self.tokenizer.save_pretrained(folder)
        finally:
            if backend is not None:
                backend.no_truncation()
                backend.no_padding()


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """Configuration, generation defaults, tokenizer and code of the model that a run began with."""

    config: Any
    generation_config: GenerationConfig | None
    encoder: Encoder
    tokenizer: KeptTokenizer
    dtype: torch.dtype
    """Of the checkpoint's weights."""
    folder: Path | None
    """Where its code files are; None for a preset and a hub id."""

    def generation(self, *, max_new_tokens: int | None = None) -> GenerationConfig:
        """The maker's generation defaults, with what a trained model needs and they lack.

        The end that training teaches is among the ends. `max_new_tokens` counts where the maker set no
        limit.
        """
        if self.generation_config is None:
            generation = GenerationConfig.from_model_config(self.config)
        else:
            generation = copy.deepcopy(self.generation_config)
        added: dict[str, Any] = {}
        if (all_ends := ends(generation, self.encoder)) != as_list(generation.eos_token_id):
            added["eos_token_id"] = all_ends if len(all_ends) > 1 else all_ends[0]
        if generation.pad_token_id is None:
            added["pad_token_id"] = self.encoder.pad
        start = getattr(self.config, "decoder_start_token_id", None)
        if generation.decoder_start_token_id is None and start is not None:
            added["decoder_start_token_id"] = start
        has_limit = generation.max_new_tokens is not None or generation.max_length is not None
        if max_new_tokens is not None and not has_limit:
            added["max_new_tokens"] = max_new_tokens
        if added and getattr(generation, "_from_model_config", False):
            added["_from_model_config"] = False
        for name, value in added.items():
            setattr(generation, name, value)
        return generation

    def write(
        self,
        folder: Path,
        model: PreTrainedModel,
        *,
        dtype: torch.dtype,
        generation: GenerationConfig,
    ) -> None:
        """Writes all but the weights, which have that dtype."""
        config = copy.deepcopy(self.config)
        for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
            if part is not None:
                part.dtype = dtype
        config.dtype = str(dtype).removeprefix("torch.")
        config.architectures = [type(model).__name__.removeprefix("FSDP")]
        config.save_pretrained(folder)
        if model.can_generate():
            # save_pretrained refuses some that from_pretrained takes, as a temperature without sampling
            generation.to_json_file(
                folder / "generation_config.json", keys_to_pop=["compile_config"]
            )
        self.tokenizer.save(folder)
        complete_code(folder, self.folder)


def as_list(tokens: int | list[int] | None) -> list[int]:
    """Token ids, of which generation configurations have one, several or none."""
    if tokens is None:
        return []
    return list(tokens) if isinstance(tokens, list) else [tokens]


def ends(generation: GenerationConfig | None, encoder: Encoder) -> list[int]:
    """Tokens that end an answer: the maker's, and the one that training teaches."""
    known = [] if generation is None else as_list(generation.eos_token_id)
    return known if encoder.end in known else [*known, encoder.end]


def cast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Gives the weights that dtype, in place and one by one; ends training."""
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        tensor.grad = None
        tensor.data = casted(model, name, tensor.data, dtype)


def casted(model: PreTrainedModel, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in that dtype; float32 where transformers keeps it so (T5's `wo` in fp16)."""
    kept = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        kept |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    is_kept = any(f".{part}." in f".{name}." for part in kept)
    return tensor if is_kept or not tensor.is_floating_point() else tensor.to(dtype)
