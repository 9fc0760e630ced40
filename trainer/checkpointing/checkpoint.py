"""Checkpoints: all that a run needs for an exact resume, written atomically as one folder.

model.safetensors      the trained weights by name; frozen ones come from the base model
optimizer.safetensors  the optimizer's state, as `name of the weight/name of the state`
state.json             position and settings of the run, the loss scale, the best evaluation
manifest.json          size and CRC-32 of every other file
config.json, tokenizer…  where every weight is trained: the folder is then a model for transformers

A checkpoint does not depend on the number of processes, sharding or the micro-batch. It holds no
generator state: the order of samples and a step's dropout follow from the seed and the step.
"""

import json
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import Tensor

from autotune import files
from autotune.errors import OutputError
from trainer.artifacts.evaluation_log import Best
from trainer.artifacts.manifest import Damaged, check_manifest, read_object, write_manifest
from trainer.artifacts.own_files import remove_checkpoint
from trainer.artifacts.run_folder import RunFolder, refusals
from trainer.checkpointing.export import write_model_files
from trainer.checkpointing.safetensors_io import TensorFile, in_order, write_tensors
from trainer.checkpointing.state_dict import (
    contents,
    fill_from,
    frozen_checksum,
    plain_states,
    states,
)
from trainer.model.engine import Engine
from trainer.model.finite import is_finite
from trainer.pretrained.original import Original

FORMAT = 1
PARTS = ("model.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Position and settings of a run, for `state.json`."""

    step: int
    """Optimizer steps done; the schedule's position."""
    steps: int
    """Optimizer steps of the run; the schedule's length."""
    samples: int
    """Samples consumed."""
    seed: int
    profile: str | None
    settings: dict[str, Any]
    best: Best | None
    """The best evaluation so far."""


def checkpoint_tensors(engine: Engine) -> dict[str, dict[str, Tensor]]:
    """Tensors by file and name."""
    weights = {name: parameter.detach() for name, parameter in engine.trainable.items()}
    return {"model.safetensors": weights, "optimizer.safetensors": states(engine)}


def save_checkpoint(
    folder: RunFolder, engine: Engine, position: Position, original: Original, *, keep: int
) -> Path:
    """Writes `checkpoint-<step>`, then removes all but the last `keep` and the best.

    Every rank calls it; the main process writes.

    Raises:
        OutputError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    final = folder.path / f"checkpoint-{position.step}"
    scaler = engine.accelerator.scaler
    parts = checkpoint_tensors(engine)
    state = {
        "format": FORMAT,
        **asdict(position),
        "frozen": frozen_checksum(engine),
        "scaler": None if scaler is None else scaler.state_dict(),
        "optimizer": plain_states(engine),
    }
    if not engine.accelerator.is_main_process:
        for tensors in parts.values():
            deque(contents(tensors), maxlen=0)  # takes part in the collectives
        return final
    need = sum(t.numel() * t.dtype.itemsize for tensors in parts.values() for t in tensors.values())
    for journal in (folder.metrics, folder.evaluations):
        journal.sync()
    with refusals(folder, final.name, need), files.appearing(final) as temporary:
        for name, tensors in parts.items():
            write_tensors(temporary / name, in_order(tensors), contents(tensors))
        (temporary / "state.json").write_text(json.dumps(state, indent=1))
        if state["frozen"] is None:
            write_model_files(engine.unwrapped, original, temporary)
        write_manifest(temporary)
    with refusals(folder, final.name, need):
        for old in folder.checkpoints()[:-keep]:
            if position.best is None or old.name != f"checkpoint-{position.best.step}":
                remove_checkpoint(old)
    return final


def resume(folder: RunFolder, engine: Engine, say: Callable[[str], None]) -> int:
    """Loads the newest undamaged checkpoint into the engine; returns the steps done, 0 without one.

    `Engine.preallocate` must have allocated the optimizer's state, which is filled here. The main
    process reads and broadcasts: other nodes may not see the folder.

    Raises:
        OutputError: there are checkpoints, and the run cannot resume from any of them.
    """
    found: tuple[Path, dict[str, Any]] | None = None
    if engine.accelerator.is_main_process:
        found = _last_undamaged(folder, say)
        if found is not None:
            _check_fits(*found, engine)
    (found,) = broadcast_object_list([found])
    if found is None:
        return 0
    path, state = found
    if state["frozen"] != (own := frozen_checksum(engine)):
        raise OutputError(
            f"{path} was trained on a base model whose frozen weights are not these (CRC-32 "
            f"{state['frozen']}, now {own})",
            "put the base model back, or use --fresh to start anew",
        )
    for name, tensors in checkpoint_tensors(engine).items():
        fill_from(path / name, tensors, engine)
    for name, values in state["optimizer"].items():
        engine.raw_optimizer.state[engine.trainable[name]].update(values)
    if state["scaler"] is not None and engine.accelerator.scaler is not None:
        engine.accelerator.scaler.load_state_dict(state["scaler"])
    step: int = state["step"]
    return step


def verify(path: Path) -> dict[str, Any]:
    """Returns `state.json`; raises Damaged where a file is missing, altered, of another version, or where
    weights are not finite."""
    check_manifest(path, PARTS)
    state = read_object(path / "state.json")
    if state.get("format") != FORMAT:
        raise Damaged(f"its format is {state.get('format')}, this version reads {FORMAT}")
    match state:
        case {"step": int(), "frozen": int() | None, "scaler": dict() | None, "optimizer": dict()}:
            pass
        case _:
            raise Damaged("state.json lacks a value or has one of another type")
    try:
        with TensorFile(path / PARTS[1]), TensorFile(path / PARTS[0]) as file:
            for name in file.shapes():
                if not is_finite(file.read(name)):
                    raise Damaged(f"{name} in {PARTS[0]} is not finite (inf or NaN)")
    except ValueError as error:
        raise Damaged(str(error)) from error
    return state


def _last_undamaged(
    folder: RunFolder, say: Callable[[str], None]
) -> tuple[Path, dict[str, Any]] | None:
    """The newest undamaged checkpoint and its state; newer ones are set aside.

    Raises OutputError where all are damaged: only --fresh starts anew.
    """
    faults: dict[Path, str] = {}
    for path in reversed(folder.checkpoints()):
        try:
            state = verify(path)
        except Damaged as fault:
            faults[path] = str(fault)
            continue
        for damaged, what in faults.items():
            aside = folder.set_aside(damaged)
            say(f"{damaged.name} is damaged ({what}), renamed to {aside.name}; using {path.name}")
        return path, state
    if faults:
        what = "; ".join(f"{path.name}: {fault}" for path, fault in faults.items())
        raise OutputError(
            f"no checkpoint in {folder.path} can be read ({what})",
            "put a good copy back, or use --fresh to start anew",
        )
    return None


def _check_fits(path: Path, state: dict[str, Any], engine: Engine) -> None:
    """Raises OutputError where the tensors or numbers are not those of this model and optimizer."""
    if others := sorted(state["optimizer"].keys() - engine.trainable.keys()):
        raise OutputError(
            f"{path / 'state.json'} does not match this run: it has {others[0]}, which is not trained",
            "use --fresh to start anew",
        )
    for name, tensors in checkpoint_tensors(engine).items():
        with TensorFile(path / name) as file:
            there = file.shapes()
        here = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        if there != here:
            key = sorted(dict(there.items() ^ here.items()))[0]
            raise OutputError(
                f"{path / name} does not match this run: {key} is {there.get(key, 'missing')}, here "
                f"{here.get(key, 'unknown')}",
                "use --fresh to start anew",
            )
