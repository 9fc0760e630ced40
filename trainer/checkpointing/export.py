"""The trained model in the run's folder, for `from_pretrained`.

Its files move from a hidden folder one by one, `config.json` last: a kill leaves all or no model.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from autotune import files
from trainer.artifacts.run_folder import RunFolder, refusals
from trainer.model.adapters import merged
from trainer.model.engine import Engine
from trainer.model.fsdp import full_tensor
from trainer.pretrained.original import Original, cast, casted


def export_model(
    folder: RunFolder,
    engine: Engine,
    original: Original,
    *,
    dtype: torch.dtype,
    max_new_tokens: int,
    describe: Callable[[Path], object],
) -> None:
    """Writes the model in that dtype, the files of its maker, and what `describe` adds.

    Every rank calls it, the main one writes. Merges adapters and converts weights in place, which ends
    training.

    Raises:
        OutputError: the disk is full or not writable; the checkpoints are untouched.
    """
    model = engine.unwrapped
    full = _gathered(engine, dtype) if engine.is_sharded else None
    if not engine.accelerator.is_main_process:
        return
    need = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    generation = original.generation(max_new_tokens=max_new_tokens)
    # `original.write` writes the maker's
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    hidden = folder.path / ".model"
    with refusals(folder, "model.safetensors", need):
        files.remove(hidden)
        hidden.mkdir()
        try:
            if full is None:
                model = merged(model, engine.adapter, hidden)
                cast(model, dtype)
            else:
                # FSDP's class is defined in torch: transformers would copy that file as the model's code
                type(model)._auto_class = None
            model.save_pretrained(hidden, state_dict=full)
            original.write(hidden, model, dtype=dtype, generation=generation)
            describe(hidden)
            for file in hidden.rglob("*"):
                files.sync(file)
            folder.place_model(hidden)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


def _gathered(engine: Engine, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every weight in full and in that dtype on the main process's CPU; tied weights are one tensor."""
    model = engine.unwrapped
    keeps = engine.accelerator.is_main_process
    full: dict[int, Tensor] = {}
    for name, parameter in model.named_parameters():
        content = full_tensor(parameter.detach())
        if keeps:
            full[id(parameter)] = casted(model, name, content.cpu(), dtype)
    named = model.named_parameters(remove_duplicate=False)
    return {name: full[id(parameter)] for name, parameter in named} if keeps else {}


def write_model_files(model: PreTrainedModel, original: Original, folder: Path) -> None:
    """Writes all of a model but its weights; with those, in float32, the folder is then a model."""
    original.write(folder, model, dtype=torch.float32, generation=original.generation())
