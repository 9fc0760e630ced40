"""What transformers reads beside a model's weights: configuration, generation defaults, tokenizer."""

import copy
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel


def describe(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Writes those files, so that the folder is a model once its weights are there."""
    config = copy.deepcopy(model.config)
    config.use_cache = True
    config.architectures = [type(model).__name__.removeprefix("FSDP")]
    config.save_pretrained(folder)
    fix_generation_config(model)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def fix_generation_config(model: PreTrainedModel) -> None:
    """Makes generation defaults such that they can be saved.

    Models of the hub come with a temperature and no sampling, which transformers 5 loads and refuses
    to save (ValueError): the end of a run would be the first to find out. The temperature was meant.
    """
    generation = model.generation_config
    if generation is None or _is_valid(generation):
        return
    generation.do_sample = True
    if not _is_valid(generation):
        model.generation_config = GenerationConfig.from_model_config(model.config)


def _is_valid(generation: GenerationConfig) -> bool:
    try:
        generation.validate(strict=True)
    except ValueError:
        return False
    return True
