"""Finds numbers that are not finite (inf, NaN) before they reach weights or files."""

import math
from collections.abc import Mapping
from enum import StrEnum

import torch
from accelerate.utils import gather_object
from torch import Tensor

from trainer.model.fsdp import own_shard


class Part(StrEnum):
    """The part of an optimizer step that is not finite."""

    LOSS = "loss"
    GRADIENT = "gradient"
    SCALED_GRADIENT = "scaled gradient"
    """fp16: the gradient at every loss scale down to about 1."""


class NotFinite(Exception):
    """A step whose loss or gradient is not finite. All ranks raise it, and no rank has taken the step."""

    def __init__(self, part: Part) -> None:
        super().__init__(part)
        self.part = part


def is_finite(tensor: Tensor) -> bool:
    """Whether every number of the tensor, or of this rank's shard, is finite; makes no copy of it."""
    own = own_shard(tensor.detach())
    if own.numel() == 0 or not own.is_floating_point():
        return True
    lowest, highest = torch.aminmax(own)  # NaN if any number is NaN
    return math.isfinite(lowest.item()) and math.isfinite(highest.item())


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that is not finite on any rank; None if all are. Every rank calls it."""
    own = next((name for name, tensor in tensors.items() if not is_finite(tensor)), None)
    return next((name for name in gather_object([own]) if name is not None), None)
