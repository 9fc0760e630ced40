"""FSDP2: a model whose weights, gradients and optimizer state are shared out over the ranks.

torch's `fully_shard` is called directly. Through accelerate's plugin it would need accelerate's own
accumulation, its launcher's variables and its prepared optimizer; what is left to do here is less.

Each block of the model is gathered for its forward and its backward pass. These are collectives: every
rank must run as many micro-batches as the others. Gradients are reduced at *each* micro-batch, not
only at the last one: kept back, they would stand unsharded on every rank, 4 bytes a parameter, which
is what sharding is there to save. Memory is then the same at any accumulation.
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


def shard(model: PreTrainedModel, device: torch.device, world_size: int) -> None:
    """Shards the model in place and on the device: each of its blocks, and what is around them.

    Weights stay float32; under bf16, autocast computes as it does unsharded.
    """
    # T5's blocks return views of what they were given; nobody changes those in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (world_size,))
    blocks = _block_names(model)
    for module in list(model.modules()):
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """The model whole on every rank, for forward passes that are no collectives: one may run more.

    It takes 4 bytes a parameter for as long. Every rank enters and leaves together.
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
            # what is around the blocks stays gathered from forward to backward, as torch has it
            part.set_reshard_after_forward(part is not model, recurse=False)


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of one that is sharded (a collective), or the tensor itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def fill(target: Tensor, content: Tensor) -> None:
    """Puts the full content, which every rank has, into the target or this rank's shard of it."""
    with torch.no_grad():
        if isinstance(target, DTensor):
            own = distribute_tensor(
                content.to(target.device), target.device_mesh, target.placements, src_data_rank=None
            )
            target.to_local().copy_(own.to_local())
        else:
            target.copy_(content)


def _block_names(model: PreTrainedModel) -> set[str]:
    """Class names of the blocks that transformers says must stay together."""
    found = {
        name
        for module in model.modules()
        for name in getattr(module, "_no_split_modules", None) or ()
    }
    return found or {
        type(item).__name__
        for module in model.modules()
        if isinstance(module, nn.ModuleList)
        for item in module
    }
