"""Checkpoints: all that a run needs to go on, in a folder that appears whole or not at all.

Nothing in it depends on the number of processes or on how a step is cut: the trained parameters, the
optimizer's state, and the step. The order of samples and the random numbers of a step follow from the seed.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from trainer.engine import Engine
from trainer.run_folder import RunFolder


def save_checkpoint(folder: RunFolder, engine: Engine, step: int, *, keep: int) -> Path:
    """Writes `checkpoint-<step>` (call it on the main process) and removes the oldest beyond `keep`."""
    final = folder.path / f"checkpoint-{step}"
    temporary = folder.path / f".checkpoint-{step}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    trained = {name: p.detach().contiguous() for name, p in engine.trainable.items()}
    save_file(trained, temporary / "trained.safetensors")
    torch.save(engine.raw_optimizer.state_dict(), temporary / "optimizer.pt")
    (temporary / "state.json").write_text(json.dumps({"step": step}))
    for file in temporary.iterdir():
        _fsync(file)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _fsync(folder.path)
    for old in folder.checkpoints()[:-keep]:
        shutil.rmtree(old)
    return final


def load_checkpoint(path: Path, engine: Engine) -> int:
    """Puts the model and the optimizer back as they were; returns the step that was done.

    Both are read on the CPU first: the device then never holds them twice.
    """
    trained = load_file(path / "trained.safetensors")
    with torch.no_grad():
        for name, parameter in engine.trainable.items():
            parameter.copy_(trained[name])
    del trained
    state = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
    engine.raw_optimizer.load_state_dict(state)
    step: int = json.loads((path / "state.json").read_text())["step"]
    return step


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
