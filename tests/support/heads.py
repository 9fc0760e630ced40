"""Tiny models with every form of output head, two layers of width 32 at random."""

from typing import Any

VOCABULARY = 300
"""No multiple of a chunk."""


def with_head(family: str) -> Any:
    """A model of that family; its head's biases, where it has some, are not zero."""
    import torch
    import transformers as hf

    common = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3}
    llama = {
        **common, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    gemma = {**llama, "head_dim": 8, "query_pre_attn_scalar": 8}
    t5 = {
        **common, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2,
        "num_decoder_layers": 2, "decoder_start_token_id": 0, "dropout_rate": 0.0,
    }  # fmt: skip
    bart = {
        **common, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48, "decoder_start_token_id": 1, "max_position_embeddings": 64,
    }  # fmt: skip
    gpt2 = {
        **common, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "resid_pdrop": 0.0,
        "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    }  # fmt: skip
    opt = {
        **common, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "dropout": 0.0,
        "num_attention_heads": 4, "word_embed_proj_dim": 32, "max_position_embeddings": 64,
    }  # fmt: skip
    kinds: dict[str, tuple[str, str, dict[str, Any]]] = {
        "t5": ("T5ForConditionalGeneration", "T5Config", t5),
        "t5_untied": (
            "T5ForConditionalGeneration", "T5Config", {**t5, "tie_word_embeddings": False},
        ),
        "mt5": ("MT5ForConditionalGeneration", "MT5Config", t5),
        "bart": ("BartForConditionalGeneration", "BartConfig", bart),
        "marian": ("MarianMTModel", "MarianConfig", bart),
        "llama": ("LlamaForCausalLM", "LlamaConfig", llama),
        "qwen2_tied": ("Qwen2ForCausalLM", "Qwen2Config", {**llama, "tie_word_embeddings": True}),
        "mistral": ("MistralForCausalLM", "MistralConfig", llama),
        "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**gemma, "final_logit_softcapping": 2.0}),
        "cohere": ("CohereForCausalLM", "CohereConfig", {**llama, "logit_scale": 0.25}),
        "granite": ("GraniteForCausalLM", "GraniteConfig", {**llama, "logits_scaling": 3.0}),
        "gpt2": ("GPT2LMHeadModel", "GPT2Config", gpt2),
        "phi": ("PhiForCausalLM", "PhiConfig", {**llama, "num_key_value_heads": 4}),
        "opt": ("OPTForCausalLM", "OPTConfig", opt),
        "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", llama),
    }  # fmt: skip
    model, config, values = kinds[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        made: Any = getattr(hf, model)(getattr(hf, config)(**values))
        for weight in made.parameters():
            weight.data.mul_(3.0)  # logits that a soft cap changes
        bias = getattr(
            made, "final_logits_bias", getattr(made.get_output_embeddings(), "bias", None)
        )
        if bias is not None:
            bias.data.normal_()
    return made


FAMILIES = (
    "t5", "t5_untied", "mt5", "bart", "marian", "llama", "qwen2_tied", "mistral", "gemma2",
    "cohere", "granite", "gpt2", "phi", "opt", "gpt_neox",
)  # fmt: skip


def batch(model: Any, *, rows: int, source: int = 9, target: int = 7, seed: int = 0) -> Any:
    """A micro-batch of random tokens; a third of the positions is not learnt."""
    import torch

    from trainer.batching.collator import IGNORED, Batch

    generator = torch.Generator().manual_seed(seed)

    def tokens(length: int) -> Any:
        return torch.randint(5, VOCABULARY, (rows, length), generator=generator)

    mask = torch.ones(rows, source, dtype=torch.long)
    mask[-1, -2:] = 0
    inputs = {"input_ids": tokens(source), "attention_mask": mask}
    labels = tokens(target if model.config.is_encoder_decoder else source)
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens(target)
    labels = labels.masked_fill(torch.rand(labels.shape, generator=generator) < 0.3, IGNORED)
    counted = int((labels != IGNORED).sum())
    return Batch(inputs, labels, rows, int(mask.sum()) + counted, counted, labels.numel())
