"""The optimizer of a run, by name; each takes the learning rate that a step gives it.

adamw       torch's, fused: one pass over the parameters and no temporary copy of them (the foreach
            form makes one). State: two numbers a weight.
adafactor   transformers', told to keep no learning rate of its own. State: a row and a column for
            each matrix (Shazeer & Stern, arXiv 1804.04235).
adamw-8bit  bitsandbytes', by blocks (Dettmers et al., arXiv 2110.02861). State: two bytes a weight.

Weight decay pulls at matrices and embeddings alone: a bias or a norm's scale that is pulled to zero
loses what it is for (as in GPT-2's and T5's own training code, and in transformers' Trainer).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from autotune.choices import Optimizer
from autotune.errors import UsageError

EPSILON = 1e-6
"""AdamW divides by a gradient's size plus this. At 1e-8 a gradient that is rounding noise still moves
its weight by the whole learning rate, so that two cuts of one step drift apart: gradient norms differ
by 2e-3 after 20 steps, and by 8e-7 with 1e-6 and ten steps of warm-up (chatlm-tiny, fp32)."""


def make_optimizer(
    name: Optimizer, parameters: Iterable[nn.Parameter], *, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer of those parameters that are trained; its learning rate is zero until one is set.

    Raises:
        UsageError: it needs a package that is not installed.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    match name:
        case "adamw":
            return torch.optim.AdamW(groups, lr=0.0, eps=EPSILON, fused=True)
        case "adafactor":
            return _adafactor(groups)
        case "adamw-8bit":
            return _adamw_8bit(groups)


def reset_step_counters(optimizer: torch.optim.Optimizer) -> None:
    """Makes state that a step of zero gradients has allocated count as fresh: no step was done.

    Adam's averages are zero after it, as they began; Adafactor's first real step replaces its own
    (its decay is 1 − step^−0.8, which is 0 at step 1).
    """
    for state in optimizer.state.values():
        steps = state["step"]
        if isinstance(steps, torch.Tensor):
            steps.zero_()
        else:
            state["step"] = 0


def _adafactor(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """transformers' Adafactor, whose step is at most the given learning rate (root mean square).

    Not torch's, which takes the rate as a share of each weight's own size and caps it at 1 / √step:
    a schedule would not be followed. Its epsilon is added to squared gradients: AdamW's, squared.
    """
    from transformers.optimization import Adafactor

    make: Any = Adafactor
    optimizer: torch.optim.Optimizer = make(
        groups, lr=0.0, eps=(EPSILON**2, 1e-3), scale_parameter=False, relative_step=False
    )
    return optimizer


def _adamw_8bit(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UsageError(
            "--optimizer adamw-8bit needs bitsandbytes, which is not installed",
            "run "
            "`pip install bitsandbytes`, or use --optimizer adafactor, whose state is smaller still",
        ) from error
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, lr=0.0, eps=EPSILON)
    return optimizer
