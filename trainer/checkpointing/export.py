"""The trained model in the run's folder, for `from_pretrained`.

Its files move from a hidden folder one by one, `config.json` last: a kill leaves all or no model.
"""

import copy
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from autotune import files
from trainer.artifacts.run_folder import RunFolder, refusals
from trainer.model.adapters import export
from trainer.model.engine import Engine
from trainer.model.fsdp import full_tensor

LAST = "config.json"


def export_model(
    folder: RunFolder, engine: Engine, tokenizer: Any, *, describe: Callable[[Path], object]
) -> None:
    """Writes model and tokenizer, and what `describe` adds; every rank calls it, the main one writes.

    Merges adapters in place, which ends training.

    Raises:
        OutputError: the disk is full or not writable; the checkpoints are untouched.
    """
    model = engine.unwrapped
    full = _gathered(engine) if engine.is_sharded else None
    if not engine.accelerator.is_main_process:
        return
    need = sum(p.numel() * p.dtype.itemsize for p in model.parameters())
    model.config.use_cache = True
    fix_generation_config(model)
    hidden = folder.path / ".model"
    with refusals(folder, "model.safetensors", need):
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir()
        try:
            if full is None:
                export(model, engine.adapter, hidden)
            else:
                model.save_pretrained(hidden, state_dict=full)
            tokenizer.save_pretrained(hidden)
            describe(hidden)
            names = sorted((file.name for file in hidden.iterdir()), key=lambda n: (n == LAST, n))
            for file in hidden.rglob("*"):
                files.sync(file)
            folder.note_model(names)
            (folder.path / LAST).unlink(missing_ok=True)
            for name in names:
                if name == LAST:
                    files.sync(folder.path)
                if (hidden / name).is_dir():  # the adapter's: `replace` cannot overwrite a folder
                    shutil.rmtree(folder.path / name, ignore_errors=True)
                (hidden / name).replace(folder.path / name)
            files.sync(folder.path)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


def _gathered(engine: Engine) -> dict[str, Tensor]:
    """Every weight in full on the main process's CPU; tied weights are one tensor."""
    model = engine.unwrapped
    keeps = engine.accelerator.is_main_process
    full: dict[int, Tensor] = {}
    for parameter in model.parameters():
        content = full_tensor(parameter.detach())
        if keeps:
            full[id(parameter)] = content.cpu()
    named = model.named_parameters(remove_duplicate=False)
    return {name: full[id(parameter)] for name, parameter in named} if keeps else {}


def write_model_config(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Writes configuration and tokenizer; with weights the folder is then a model."""
    config = copy.deepcopy(model.config)
    config.use_cache = True
    config.architectures = [type(model).__name__.removeprefix("FSDP")]
    config.save_pretrained(folder)
    fix_generation_config(model)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def fix_generation_config(model: PreTrainedModel) -> None:
    """Changes generation defaults that transformers 5 loads and refuses to save (ValueError).

    Some hub models set a temperature without sampling; sampling is turned on.
    """
    generation = model.generation_config
    if generation is not None and not _is_valid(generation):
        generation.do_sample = True
        if not _is_valid(generation):
            model.generation_config = GenerationConfig.from_model_config(model.config)


def _is_valid(generation: GenerationConfig) -> bool:
    with suppress(ValueError):
        generation.validate(strict=True)
        return True
    return False
