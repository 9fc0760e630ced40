"""What of an engine must be kept to go on exactly, by name, whatever holds the model: plain, DDP, FSDP2.

torch's own `distributed.checkpoint.state_dict` is not used: it gathers all tensors at once, knows
the states of torch's optimizers alone, and steps an optimizer to learn them. Here one tensor travels
at a time, and restoring fills what is there, so that a resume takes no more memory than a start.
"""

import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.checkpointing.safetensors_io import TensorFile, in_order
from trainer.model.engine import Engine
from trainer.model.fsdp import fill, whole


def weights(engine: Engine) -> dict[str, Tensor]:
    """The trained ones, without their gradients."""
    return {name: parameter.detach() for name, parameter in engine.trainable.items()}


def states(engine: Engine) -> dict[str, Tensor]:
    """The optimizer's tensors, as `name of the weight/name of the state`."""
    state = engine.raw_optimizer.state
    return {
        f"{name}/{key}": value
        for name, parameter in engine.trainable.items()
        for key, value in state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def plain_states(engine: Engine) -> dict[str, dict[str, Any]]:
    """What an optimizer keeps as plain numbers, by weight."""
    state = engine.raw_optimizer.state
    values = {
        name: {k: v for k, v in state.get(parameter, {}).items() if isinstance(v, int | float)}
        for name, parameter in engine.trainable.items()
    }
    return {name: plain for name, plain in values.items() if plain}


def contents(tensors: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """Full tensors in the file's order; a collective for each that is sharded."""
    return (whole(tensor) for _, tensor in in_order(tensors))


def fill_from(path: Path, targets: Mapping[str, Tensor], engine: Engine) -> None:
    """Fills the targets, a tensor at a time: from the file, or as the main process sends it."""
    accelerator = engine.accelerator
    with ExitStack() as stack:
        file = None
        if accelerator.is_main_process:
            file = stack.enter_context(TensorFile(path))
        for name, target in in_order(targets):
            if accelerator.num_processes == 1:
                assert file is not None
                fill(target, file.read(name))
                continue
            content = (
                torch.empty(target.shape, dtype=target.dtype, device=accelerator.device)
                if file is None
                else file.read(name).to(accelerator.device)
            )
            dist.broadcast(content, src=0)
            fill(target, content)


@lru_cache(maxsize=1)  # they do not change, and a large model's take seconds
def frozen_checksum(engine: Engine) -> int | None:
    """CRC-32 over the weights that are not trained; None where all are. A collective if sharded."""
    crc = None
    for _, parameter in sorted(engine.unwrapped.named_parameters()):
        if not parameter.requires_grad:
            raw = whole(parameter.detach()).cpu().contiguous().reshape(-1).view(torch.uint8)
            crc = zlib.crc32(raw.numpy().data, crc or 0)
    return crc
