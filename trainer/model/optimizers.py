"""The optimizer of a run, by name. Each step sets its learning rate.

adamw       torch's, fused: one pass and no temporary copy of the parameters (the foreach form makes
            one). State: two numbers a weight.
adafactor   transformers', with our learning rate instead of its own: a step's root mean square is at most
            the rate. State: a row and a column for each matrix (Shazeer & Stern, arXiv 1804.04235).
adamw-8bit  bitsandbytes', block-wise (Dettmers et al., arXiv 2110.02861). State: two bytes a weight.

Weight decay applies to matrices and embeddings, not to norms and biases, as in the training code of
GPT-2 and T5 and in transformers' Trainer.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from autotune.choices import Optimizer
from autotune.errors import UsageError

EPSILON = 1e-6
"""AdamW's epsilon. At 1e-8 a gradient of rounding noise still moves its weight by the full learning
rate, so two micro-batch sizes drift apart: gradient norms differ by 2e-3 after 20 steps, and by 8e-7
with 1e-6 and ten steps of warm-up (chatlm-tiny, fp32)."""


def make_optimizer(
    name: Optimizer, parameters: Iterable[nn.Parameter], *, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer of the trained parameters, with a learning rate of zero.

    Raises:
        UsageError: it needs a package that is not installed.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer: torch.optim.Optimizer
    match name:
        case "adamw":
            optimizer = torch.optim.AdamW(groups, lr=0.0, eps=EPSILON, fused=True)
        case "adafactor":
            # torch's scales the rate by each weight and caps it at 1 / √step, so it does not follow a
            # schedule. The epsilon is added to squared gradients: AdamW's, squared.
            from transformers.optimization import Adafactor

            make: Any = Adafactor
            epsilons = (EPSILON**2, 1e-3)
            optimizer = make(
                groups, lr=0.0, eps=epsilons, scale_parameter=False, relative_step=False
            )
        case "adamw-8bit":
            try:
                from bitsandbytes.optim import AdamW8bit
            except ImportError as error:
                raise UsageError(
                    "--optimizer adamw-8bit needs bitsandbytes, which is not installed",
                    "run `pip install bitsandbytes`, or use --optimizer adafactor, whose state is smaller still",
                ) from error
            optimizer = AdamW8bit(groups, lr=0.0, eps=EPSILON)
    return optimizer


def reset_step_counters(optimizer: torch.optim.Optimizer) -> None:
    """Sets the step counters back to zero, after a step of zero gradients that allocated the state.

    Adam's averages are still zero. Adafactor's first step replaces its averages: its decay,
    1 − step^−0.8, is 0 at step 1.
    """
    for state in optimizer.state.values():
        state["step"] *= 0  # a tensor, in place, or a number
