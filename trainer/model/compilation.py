"""`torch.compile` of the training step, with two graphs for all shapes of micro-batches.

Sizes are symbolic (`dynamic=True`). torch makes another graph for a size of 1, so lengths are padded
to a multiple of 8; a micro-batch of one row keeps its own graph. torch also makes one when sizes that
were equal differ later; `use_duck_shape = False` prevents that. Above a limit of graphs torch silently
compiles nothing (pytorch#128424). The dry run compiles both graphs before the first step. Evaluation and
generation run uncompiled: they would need further graphs.
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
from trainer.data.cache_folder import check_ours, make_private, private_folder, refusals

MULTIPLE = 8
"""Tokens; also efficient on tensor cores."""

BACKEND = "CHATLM_COMPILE_BACKEND"
"""The variable that selects another backend than inductor. `eager` only traces, which takes seconds: it
tests whether a model can be traced."""


def compiled(model: nn.Module) -> Callable[..., Any]:
    """The model's forward, compiled at its first call; the model is not changed.

    Raises:
        UsageError: there is no C++ compiler, which inductor needs.
        OutputError: the folder for compiled code cannot be made.
    """
    backend = os.environ.get(BACKEND, "inductor")
    compilers = filter(None, (os.environ.get("CXX"), "g++", "clang++"))
    if backend == "inductor" and not any(map(shutil.which, compilers)):
        raise UsageError("--compile needs a C++ compiler", "install g++, or leave --compile out")
    if backend == "inductor":
        keep_code_private()
    torch.fx.experimental._config.use_duck_shape = False
    forward: Callable[..., Any] = torch.compile(model, dynamic=True, backend=backend)
    return forward


def keep_code_private() -> None:
    """Sets the folder of compiled code, unless the user did.

    torch's own is `torchinductor_<user>` in the folder for temporary files. Another user could make it
    first, and put code there that runs as this user.
    """
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        with refusals():
            folder = private_folder() / "inductor"
            make_private(folder)
            check_ours(folder)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def graphs() -> int:
    """The number of graphs that this process has compiled."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def padded(batch: Batch, longest: int | None) -> Batch:
    """The batch with inputs and labels padded to a multiple of 8; the padding is masked.

    `longest` is the number of the model's positions; None is no limit.
    """
    inputs = {name: _pad(tensor, 0, longest) for name, tensor in batch.inputs.items()}
    return replace(batch, inputs=inputs, labels=_pad(batch.labels, IGNORED, longest))


def _pad(tensor: torch.Tensor, value: int, longest: int | None) -> torch.Tensor:
    length = tensor.shape[1]
    wanted = -(-length // MULTIPLE) * MULTIPLE
    return F.pad(tensor, (0, min(wanted, longest or wanted) - length), value=value)
