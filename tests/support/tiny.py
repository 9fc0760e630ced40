"""Tiny models of each family, at random, with the bundled tokenizer; and what trains them."""

import copy
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.batching.collator import Batch, Collator
    from trainer.data.encoder import Encoder
    from trainer.model.engine import Engine
    from trainer.pretrained.original import Original

SEQ2SEQ = ("t5", "mt5", "bart")
CAUSAL = ("gpt2", "llama", "qwen2")
FAMILIES = (*SEQ2SEQ, *CAUSAL)
SPARSE = ("switch", "qwen2_moe")
"""Seq2seq with a module for each expert, and causal with all experts in one tensor."""


def tiny(family: str, *, seed: int = 0, dropout: float = 0.0, layers: int = 2) -> Any:
    """A model of that family with so many layers of width 32 on each side."""
    import torch
    import transformers as hf

    common = {"vocab_size": 2048, "pad_token_id": 0, "eos_token_id": 1}
    heads = {"num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2}
    t5 = {
        "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": layers,
        "num_decoder_layers": layers, "decoder_start_token_id": 0, "dropout_rate": dropout,
    }  # fmt: skip
    llama = {**heads, "hidden_size": 32, "intermediate_size": 64, "bos_token_id": 3}
    bart = {
        "d_model": 32, "encoder_layers": layers, "decoder_layers": layers, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "decoder_start_token_id": 1, "bos_token_id": 3, "forced_eos_token_id": None,
        "max_position_embeddings": 512, "dropout": dropout, "init_std": 0.2,
    }  # fmt: skip
    gpt2 = {
        "n_embd": 32, "n_layer": layers, "n_head": 4, "n_positions": 510, "bos_token_id": 3,
        "resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout,
    }  # fmt: skip
    qwen2_moe = {
        **llama, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
        "num_experts": 16, "num_experts_per_tok": 2,
    }  # fmt: skip
    switch = {
        **t5, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "num_experts": 16,
        "router_jitter_noise": 0.0,
    }  # fmt: skip
    kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "t5": (hf.T5ForConditionalGeneration, hf.T5Config, t5),
        "mt5": (hf.MT5ForConditionalGeneration, hf.MT5Config, t5),
        "bart": (hf.BartForConditionalGeneration, hf.BartConfig, bart),
        "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config, gpt2),
        "llama": (hf.LlamaForCausalLM, hf.LlamaConfig, llama),
        "qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config, llama),
        "qwen2_moe": (hf.Qwen2MoeForCausalLM, hf.Qwen2MoeConfig, qwen2_moe),
        "switch": (
            hf.SwitchTransformersForConditionalGeneration,
            hf.SwitchTransformersConfig,
            switch,
        ),
    }
    model, config, values = kinds[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model(config(**common, **values))


def tokenizer() -> Any:
    """The bundled one."""
    import transformers as hf

    return hf.AutoTokenizer.from_pretrained(str(resources.files("trainer") / "assets/tokenizer"))


def byte_tokenizer() -> Any:
    """One of Qwen2's class, which transformers takes for every tokenizer of a Qwen2; a token for each byte."""
    import transformers as hf
    from tokenizers.pre_tokenizers import ByteLevel

    named = {"pad_token": "[PAD]", "eos_token": "[EOS]", "unk_token": "[UNK]", "bos_token": "[BOS]"}
    tokens = (*named.values(), *sorted(ByteLevel.alphabet()))
    return hf.Qwen2Tokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], **named)


def save(family: str, folder: Path, *, layers: int = 2) -> Path:
    """The model and its tokenizer as a user has them: written by `save_pretrained`."""
    tiny(family, layers=layers).save_pretrained(folder)
    (byte_tokenizer() if family == "qwen2" else tokenizer()).save_pretrained(folder)
    return folder


def batch(model: Any, rows: int, source: int, target: int, *, seed: int = 0) -> Any:
    """A micro-batch of random tokens; each row is a token shorter than the one before it."""
    import torch

    from trainer.batching.collator import IGNORED, Batch

    generator = torch.Generator().manual_seed(seed)

    def tokens(length: int) -> Any:
        return torch.randint(5, 2048, (rows, length), generator=generator)

    shorter = torch.arange(rows)[:, None]
    mask = (torch.arange(source) < (source - shorter).clamp(min=1)).long()  # (rows, source)
    inputs = {"input_ids": tokens(source), "attention_mask": mask}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens(target)
        labels = tokens(target)
    else:
        labels = tokens(source).masked_fill(mask == 0, IGNORED)
    counted = int((labels != IGNORED).sum())
    return Batch(inputs, labels, rows, int(mask.sum()) + counted, counted, labels.numel())


def engine(model: Any, **values: Any) -> "Engine":
    """The engine of a copy of the model, with those settings."""
    from trainer.config.settings import WorkloadSettings
    from trainer.model.accelerator import make_accelerator
    from trainer.model.engine import Engine

    settings = WorkloadSettings(**values)
    return Engine(make_accelerator(settings), copy.deepcopy(model), settings)


def trained(engine: "Engine", *cut: "Batch", steps: int = 2, rate: float = 1e-2) -> list[float]:
    """Takes steps on those micro-batches; the gradient norms."""
    tokens = sum(data.target_tokens for data in cut)
    norms = []
    for _ in range(steps):
        engine.forward_backward(cut, target_tokens=tokens)
        norms.append(engine.optimizer_step(rate))
    return norms


def gradient(engine: "Engine", batches: list["Batch"], tokens: int) -> tuple[Any, float]:
    """(all gradients as one vector, loss per target token) of `tokens` target tokens."""
    import torch

    engine.optimizer.zero_grad()
    loss = engine.forward_backward(batches, target_tokens=tokens)
    found = (p.grad.flatten() for p in engine.unwrapped.parameters() if p.grad is not None)
    return torch.cat(list(found)), loss.item() / tokens


def original(model: Any, encoder: "Encoder") -> "Original":
    """What the export writes beside the weights of a model that was not loaded from a folder."""
    import torch

    from trainer.pretrained.original import KeptTokenizer, Original

    return Original(
        config=copy.deepcopy(model.config),
        generation_config=copy.deepcopy(model.generation_config),
        encoder=encoder,
        tokenizer=KeptTokenizer.of(encoder.tokenizer),
        dtype=torch.float32,
        folder=None,
    )


def collator(model: Any, encoder: "Encoder", file: str | Path, *, longest: int = 64) -> "Collator":
    """The collator of that file's rows, each side cut to `longest` tokens."""
    from trainer.batching.collator import Collator
    from trainer.data.token_store import open_store

    store = open_store((str(file),), encoder, max_source=longest, max_target=longest)
    return Collator(store, encoder, getattr(model.config, "decoder_start_token_id", None))
