"""`torch.compile` of the training step, with few graphs whatever shapes the micro-batches have.

Sizes are symbols (`dynamic=True`), so that one graph serves every number of rows and every length.
Two things would still make more of them, up to torch's limit, beyond which it silently compiles
nothing (pytorch#128424). A size of 1 has a graph of its own: lengths are padded to a multiple of 8 and
never are 1, a micro-batch of one row may be. Sizes that are equal when a graph is made are taken to
be equal for ever: that is switched off. What remains is two graphs, which the rehearsal makes before
the first step. Evaluation and generation run uncompiled: they would need graphs of their own.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from autotune.errors import UsageError
from trainer.batching.collator import IGNORED, Batch

MULTIPLE = 8
"""Tokens. Also what tensor cores like."""

BACKEND = "CHATLM_COMPILE_BACKEND"
"""The variable that names another of torch's backends than inductor; `eager` traces in seconds and
compiles nothing, to find out whether a model can be traced at all."""


def compiled(model: nn.Module) -> Callable[..., Any]:
    """The model's forward, compiled when it is first called; the model itself stays as it is.

    Raises:
        UsageError: there is no C++ compiler, which inductor needs.
    """
    backend = os.environ.get(BACKEND, "inductor")
    if backend == "inductor" and not any(
        shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name
    ):
        raise UsageError("--compile needs a C++ compiler", "install g++, or leave --compile out")
    torch.fx.experimental._config.use_duck_shape = False
    forward: Callable[..., Any] = torch.compile(model, dynamic=True, backend=backend)
    return forward


def graphs() -> int:
    """How many graphs this process has compiled so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def padded(batch: Batch, longest: int | None) -> Batch:
    """The batch with both sides padded to a multiple of 8; what is added is masked and not learnt.

    `longest` is how many positions the model has, None where it has no such limit.
    """
    inputs = {name: _pad(tensor, 0, longest) for name, tensor in batch.inputs.items()}
    return replace(batch, inputs=inputs, labels=_pad(batch.labels, IGNORED, longest))


def _pad(tensor: torch.Tensor, value: int, longest: int | None) -> torch.Tensor:
    length = tensor.shape[1]
    wanted = -(-length // MULTIPLE) * MULTIPLE
    return F.pad(tensor, (0, min(wanted, longest or wanted) - length), value=value)
