"""The tensors of an engine that a checkpoint keeps, by name: the same for a plain, DDP or FSDP2 model.

torch's `distributed.checkpoint.state_dict` gathers all tensors at once, knows only torch's
optimizers, and steps an optimizer to create its state. Here one tensor moves at a time and existing
tensors are filled, so that a resume takes no more memory than a start.
"""

import zlib
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.checkpointing.safetensors_io import TensorFile, in_order
from trainer.model.engine import Engine
from trainer.model.fsdp import fill, full_tensor


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
    """The plain numbers of the optimizer's state, by weight."""
    state = engine.raw_optimizer.state
    values = {
        name: {k: v for k, v in state.get(parameter, {}).items() if isinstance(v, int | float)}
        for name, parameter in engine.trainable.items()
    }
    return {name: plain for name, plain in values.items() if plain}


def contents(tensors: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """Full tensors in file order; a collective for each sharded one."""
    return (full_tensor(tensor) for _, tensor in in_order(tensors))


def fill_from(path: Path, targets: Mapping[str, Tensor], engine: Engine) -> None:
    """Fills the targets, one tensor at a time: the main process reads the file and broadcasts."""
    accelerator = engine.accelerator
    is_main, is_single = accelerator.is_main_process, accelerator.num_processes == 1
    with TensorFile(path) if is_main else nullcontext() as file:
        for name, target in in_order(targets):
            if file is None:
                content = torch.empty(target.shape, dtype=target.dtype, device=accelerator.device)
            else:
                content = file.read(name)
            if not is_single:
                content = content.to(accelerator.device)
                dist.broadcast(content, src=0)
            fill(target, content)


@lru_cache(maxsize=1)  # frozen weights do not change, and a large model takes seconds
def frozen_checksum(engine: Engine) -> int | None:
    """CRC-32 over the frozen weights; None where all are trained. A collective if sharded."""
    crc = None
    for _, parameter in sorted(engine.unwrapped.named_parameters()):
        if not parameter.requires_grad:
            raw = full_tensor(parameter.detach()).cpu().contiguous().reshape(-1).view(torch.uint8)
            crc = zlib.crc32(raw.numpy().data, crc or 0)
    return crc
