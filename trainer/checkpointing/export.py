"""The trained model in the run's folder, as `from_pretrained` reads it.

Written in a hidden folder first and then moved file by file, `config.json` last: a folder without
it claims to be no model, so that a kill at any moment leaves a whole model or none.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.artifacts import durable
from trainer.artifacts.run_folder import RunFolder
from trainer.checkpointing.checkpoint import refusals
from trainer.checkpointing.model_files import fix_generation_config
from trainer.model.adapters import export
from trainer.model.engine import Engine
from trainer.model.fsdp import whole

LAST = "config.json"


def export_model(
    folder: RunFolder, engine: Engine, tokenizer: Any, *, describe: Callable[[Path], object]
) -> None:
    """Writes model and tokenizer, and what `describe` adds; every rank calls it, the main one writes.

    Adapters are merged, in place: what trained cannot be trained on.

    Raises:
        OutputError: the disk is full or refuses; the checkpoints are untouched.
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
                durable.sync(file)
            folder.note_model(names)
            (folder.path / LAST).unlink(missing_ok=True)
            for name in names:
                if name == LAST:
                    durable.sync(folder.path)
                if (hidden / name).is_dir():  # the adapter's: no folder takes another's place
                    shutil.rmtree(folder.path / name, ignore_errors=True)
                (hidden / name).replace(folder.path / name)
            durable.sync(folder.path)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


def _gathered(engine: Engine) -> dict[str, Tensor]:
    """Every weight in full, on the main process's CPU; one in several places is the same tensor."""
    model = engine.unwrapped
    keeps = engine.accelerator.is_main_process
    full: dict[int, Tensor] = {}
    for parameter in model.parameters():
        content = whole(parameter.detach())
        if keeps:
            full[id(parameter)] = content.cpu()
    named = model.named_parameters(remove_duplicate=False)
    return {name: full[id(parameter)] for name, parameter in named} if keeps else {}
