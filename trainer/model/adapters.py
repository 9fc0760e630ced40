"""Which weights of a model are trained: all, all but the encoder's, or LoRA's adapters alone.

LoRA (Hu et al., arXiv 2106.09685) is peft's. Its layers are put into the model in place, so that the
model stays what transformers made of it: it generates, evaluates and is sharded as ever. Only at the
very end are the adapters merged into the weights, and the result loads without peft.
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

ADAPTER_FOLDER = "adapter"

LORA_LEARNING_RATE = 1e-3
"""Ten times a pretrained model's: LoRA's best rate is about ten times that of full fine-tuning,
over models and data (Schulman et al., "LoRA Without Regret", 2025); peft's own T5 example takes it."""

DROPOUTS = ("dropout_rate", "dropout", "hidden_dropout", "resid_pdrop")
"""Where a family's configuration keeps the dropout of what a layer puts out."""


def adapt(model: PreTrainedModel, settings: WorkloadSettings) -> Any:
    """Leaves gradients only to what is to be trained; returns peft's view of the model, or None.

    Raises:
        UsageError: the model has no encoder to freeze, or no layers as LoRA is to have; or peft is
            not installed.
    """
    if settings.freeze == "encoder":
        freeze_encoder(model)
    return None if settings.lora_rank is None else add_lora(model, settings)


def freeze_encoder(model: PreTrainedModel) -> None:
    """Takes the gradients from the encoder and from the embedding that it reads.

    In T5, mT5 and BART the decoder and the output share that embedding. It is frozen with the
    encoder, as upstream does: were it trained on, the frozen encoder would read inputs that drift
    away under it, and autograd would have to keep the encoder's activations to train them.
    """
    if not model.config.is_encoder_decoder:
        raise UsageError(
            f"--freeze encoder is for models with an encoder, and {model.config.model_type} has "
            "none",
            "leave it out, or train little of the model with --lora-rank 16",
        )
    model.get_encoder().requires_grad_(False)


def add_lora(model: PreTrainedModel, settings: WorkloadSettings) -> Any:
    """Puts LoRA's layers into the model, and returns peft's view of the two.

    The same seed gives the same adapters on every rank. Alpha is twice the rank unless said.
    """
    try:
        import peft
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN
    except ImportError as error:
        raise UsageError(
            "--lora-rank needs peft, which is not installed", "run `pip install peft`"
        ) from error
    rank = settings.lora_rank
    assert rank is not None
    known: Any = KNOWN.get(model.config.model_type)
    alpha: Any = settings.lora_alpha or 2 * rank  # peft says int and takes what it is given
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
            # peft 0.21 reads an attribute by the name that transformers 5.23 calls its old one
            warnings.simplefilter("ignore", FutureWarning)
            torch.manual_seed(settings.seed)
            return peft.get_peft_model(model, config)
    except ValueError as error:
        raise UsageError(
            f"--lora-targets {' '.join(settings.lora_targets)} names no layers that LoRA can have "
            f"in a {model.config.model_type}",
            f"its linear layers are {', '.join(_linear(model))}",
        ) from error


def export(model: PreTrainedModel, adapter: Any, folder: Path) -> None:
    """Writes the model as `from_pretrained` reads it; adapters are merged, and kept beside it.

    Merging is in place: what trained cannot be trained on.
    """
    if adapter is not None:
        # whether the vocabulary has grown, peft would ask of the hub: nothing here makes it grow
        adapter.save_pretrained(folder / ADAPTER_FOLDER, save_embedding_layers=False)
        model = adapter.merge_and_unload()
    model.save_pretrained(folder)


def default_learning_rate(own: float, settings: WorkloadSettings) -> float:
    """The rate where the user names none: the model's `own`, or LoRA's."""
    return own if settings.lora_rank is None else LORA_LEARNING_RATE


def described(model: nn.Module) -> str | None:
    """A line that says how much is trained; None when all of it is."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    whole, trained = sum(n for n, _ in counts), sum(n for n, is_trained in counts if is_trained)
    if trained == whole:
        return None
    return f"training {trained:,} of {whole:,} parameters ({trained / whole:.2%})"


def _dropout(model: PreTrainedModel, settings: WorkloadSettings) -> float:
    """The run's dropout, or the model's own where it has one."""
    if settings.dropout is not None:
        return settings.dropout
    return next(
        (float(getattr(model.config, n)) for n in DROPOUTS if hasattr(model.config, n)), 0.0
    )


def _linear(model: PreTrainedModel) -> list[str]:
    """The last names of the layers that LoRA can have."""
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D)
        }
    )
