"""FSDP2: weights, gradients and optimizer state sharded over the ranks.

It calls torch's `fully_shard`. accelerate's plugin would need accelerate's accumulation, the variables
of its launcher and its prepared optimizer.

Each block is gathered for its forward and backward pass. These are collectives, so every rank must run
the same number of micro-batches. Gradients are reduced at *each* micro-batch: unreduced gradients would
take 4 bytes a parameter on every rank. Memory is the same at any accumulation.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from trainer.model.unused import may_leave_out, use_all_weights


def shard(model: PreTrainedModel, device: torch.device, world_size: int) -> None:
    """Shards each block and the rest of the model, in place and on the device.

    Weights stay float32; bf16 is autocast, as without sharding.
    """
    leaves_out = may_leave_out(model.config.to_dict())
    # T5's blocks return views of their inputs; nothing changes those in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (world_size,))
    blocks = _block_names(model)
    for module in list(model.modules()):
        if type(module).__name__ in blocks:
            if leaves_out:
                use_all_weights(module)
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """The full model on every rank, so that ranks may run unequal numbers of forward passes.

    Takes 4 bytes a parameter meanwhile. Every rank enters and leaves it: a collective.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            # torch's default: the root stays gathered from forward to backward
            part.set_reshard_after_forward(part is not model, recurse=False)


def reshard(model: nn.Module) -> None:
    """Frees the full weights that a forward pass without a backward pass leaves."""
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def full_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor in full (a collective), or the tensor itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_shard(tensor: Tensor) -> Tensor:
    """This rank's shard of a sharded tensor, or the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def fill(target: Tensor, content: Tensor) -> None:
    """Copies the full content, which every rank has, into the target or this rank's shard."""
    with torch.no_grad():
        if isinstance(target, DTensor):
            own = distribute_tensor(
                content.to(target.device), target.device_mesh, target.placements, src_data_rank=None
            )
            target.to_local().copy_(own.to_local())
        else:
            target.copy_(content)


def _block_names(model: PreTrainedModel) -> set[str]:
    """Class names of the blocks: those that transformers does not split, or the items of lists."""
    modules = list(model.modules())
    found = {name for m in modules for name in getattr(m, "_no_split_modules", None) or ()}
    lists = (module for module in modules if isinstance(module, nn.ModuleList))
    return found or {type(item).__name__ for items in lists for item in items}
