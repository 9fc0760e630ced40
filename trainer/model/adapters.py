"""Which weights of a model are trained: all, all but the encoder's, or only LoRA adapters.

LoRA (Hu et al., arXiv 2106.09685) is peft's. Its layers are added in place, so the model remains a
transformers model for generation, evaluation and sharding. The export merges the adapters into the
weights, and the result loads without peft.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from autotune.errors import UsageError
from trainer.config.settings import WorkloadSettings
from trainer.pretrained.loading import DROPOUTS

ADAPTER_FOLDER = "adapter"

LORA_LEARNING_RATE = 1e-3
"""Ten times the rate of full fine-tuning, over models and data (Schulman et al., "LoRA Without
Regret", 2025); peft's own T5 example uses it."""


def adapt(model: PreTrainedModel, settings: WorkloadSettings) -> Any:
    """Freezes the weights that are not trained; returns peft's view of the model, None without LoRA.

    Raises:
        UsageError: the model has no encoder to freeze or no target layers; or peft is not installed.
    """
    if settings.freeze == "encoder":
        if not model.config.is_encoder_decoder:
            raise UsageError(
                f"--freeze encoder is for models with an encoder, and {model.config.model_type} has none",
                "leave it out, or train a small part of the model with --lora-rank 16",
            )
        # with the input embedding, which T5, mT5 and BART share with the decoder: a trained one would
        # change the frozen encoder's inputs, and autograd would keep the encoder's activations
        model.get_encoder().requires_grad_(False)
    return None if settings.lora_rank is None else add_lora(model, settings, settings.lora_rank)


def add_lora(model: PreTrainedModel, settings: WorkloadSettings, rank: int) -> Any:
    """Adds LoRA layers to the model and returns peft's view of it.

    The seed gives every rank the same adapters. Alpha defaults to twice the rank.
    """
    try:
        import peft
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN
    except ImportError as error:
        raise UsageError(
            "--lora-rank needs peft, which is not installed", "run `pip install peft`"
        ) from error
    known: Any = KNOWN.get(model.config.model_type)
    alpha: Any = settings.lora_alpha or 2 * rank  # typed as int; takes a float
    config = peft.LoraConfig(
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=_dropout(model, settings),
        target_modules=list(settings.lora_targets) or known or "all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2's
    )
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # peft 0.21 reads an attribute by a name that transformers 5.23 deprecates
            warnings.simplefilter("ignore", FutureWarning)
            torch.manual_seed(settings.seed)
            return peft.get_peft_model(model, config)
    except ValueError as error:
        raise UsageError(
            f"--lora-targets {' '.join(settings.lora_targets)} names no layers that LoRA can adapt "
            f"in a {model.config.model_type}",
            f"its linear layers are {', '.join(_linear(model))}",
        ) from error


def merged(model: PreTrainedModel, adapter: Any, folder: Path) -> PreTrainedModel:
    """The model with its adapters merged, in place, which ends training; writes them into the folder."""
    if adapter is None:
        return model
    # without the argument peft asks the hub whether the vocabulary has grown
    adapter.save_pretrained(folder / ADAPTER_FOLDER, save_embedding_layers=False)
    whole: PreTrainedModel = adapter.merge_and_unload()
    return whole


def default_learning_rate(own: float, settings: WorkloadSettings) -> float:
    """The default peak rate: LoRA's, or the model's `own`."""
    return own if settings.lora_rank is None else LORA_LEARNING_RATE


def trainable_summary(model: nn.Module) -> str | None:
    """How many parameters are trained, as text; None when all are."""
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if trained == total:
        return None
    return f"training {trained:,} of {total:,} parameters ({trained / total:.2%})"


def _dropout(model: PreTrainedModel, settings: WorkloadSettings) -> float:
    """The run's dropout, or the model's own."""
    own = (getattr(model.config, name, None) for name in DROPOUTS)
    return next((float(p) for p in (settings.dropout, *own) if isinstance(p, float | int)), 0.0)


def _linear(model: PreTrainedModel) -> list[str]:
    named = model.named_modules()
    return sorted({n.rpartition(".")[2] for n, m in named if isinstance(m, nn.Linear | Conv1D)})
