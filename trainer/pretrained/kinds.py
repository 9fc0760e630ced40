"""Kinds of models that cannot be trained, told by config.json before any weights are read."""

from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from autotune.errors import ModelError


def check_kind(name: str, config: Any, *, is_adapters_base: bool) -> None:
    """Raises ModelError for quantised weights, and for an encoder, which sees the words that it should learn.

    transformers loads both: BERT as a BertLMHeadModel without a causal mask, and some quantised weights
    without their scales.
    """
    if (quantised := getattr(config, "quantization_config", None)) is not None:
        values = quantised if isinstance(quantised, dict) else quantised.to_dict()
        method = values.get("quant_method") or "by an unknown method"
        raise ModelError(
            f"the weights of {name} are quantised ({method}), and training needs whole ones",
            "write the model that it was made from as base_model_name_or_path in adapter_config.json"
            if is_adapters_base
            else "give the model that it was made from; --lora-rank 16 trains it in less memory",
        )
    is_encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if is_encoder and not config.is_encoder_decoder and not getattr(config, "is_decoder", False):
        raise ModelError(
            f"{name} is an encoder ({config.model_type}): it fills gaps in a text, and cannot write one",
            "give a causal or a seq2seq language model",
        )
