"""Model folders as people have them: other ends, dtypes, names of weights, code of their own."""

import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny

OWN_MODEL = (
    "from transformers import T5ForConditionalGeneration\n\n"
    "from .parts import ANSWER\n\n\n"
    "class MyTextModel(T5ForConditionalGeneration):\n"
    "    def own_answer(self):\n"
    "        return ANSWER\n"
)
OWN_KIND = (
    "from transformers import LlamaConfig, LlamaForCausalLM\n\n\n"
    "class MyConfig(LlamaConfig):\n    model_type = 'my_llm'\n\n\n"
    "class MyLM(LlamaForCausalLM):\n    config_class = MyConfig\n"
)
OWN_TOKENIZER = (
    "from transformers import ByT5Tokenizer\n\n\nclass MyTokenizer(ByT5Tokenizer):\n    pass\n"
)


def own_code_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """transformers copies a model's code there, and imports it from there, until the test ends."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)


def change(file: Path, **values: Any) -> None:
    """Sets those keys of a JSON file; None removes one."""
    known = {**json.loads(file.read_text("utf-8")), **values}
    file.write_text(json.dumps({k: v for k, v in known.items() if v is not None}), "utf-8")


def known_kind_with_code(folder: Path) -> Path:
    """A T5 whose config.json names a class beside it, in a file that imports another."""
    tiny.save("t5", folder)
    change(
        folder / "config.json",
        architectures=["MyTextModel"],
        auto_map={"AutoModelForSeq2SeqLM": "my_text_model.MyTextModel"},
    )
    (folder / "my_text_model.py").write_text(OWN_MODEL)
    (folder / "parts.py").write_text("ANSWER = 42\n")
    return folder


def unknown_kind_with_code(folder: Path) -> Path:
    """A model type that transformers does not know, with its code."""
    tiny.save("llama", folder)
    auto_map = {"AutoConfig": "my_lm.MyConfig", "AutoModelForCausalLM": "my_lm.MyLM"}
    change(folder / "config.json", model_type="my_llm", architectures=["MyLM"], auto_map=auto_map)
    (folder / "my_lm.py").write_text(OWN_KIND)
    return folder


def tokenizer_with_code(folder: Path) -> Path:
    """A T5 with a tokenizer class of its own."""
    byt5(folder)
    change(
        folder / "tokenizer_config.json",
        tokenizer_class="MyTokenizer", auto_map={"AutoTokenizer": ["my_tokenizer.MyTokenizer", None]},
    )  # fmt: skip
    (folder / "my_tokenizer.py").write_text(OWN_TOKENIZER)
    return folder


def byt5(folder: Path) -> Path:
    """ByT5: its tokenizer reads bytes and has no vocabulary file."""
    from transformers import ByT5Tokenizer

    tiny.save("t5", folder)
    (folder / "tokenizer.json").unlink()
    ByT5Tokenizer().save_pretrained(folder)
    return folder


def spiece_only(folder: Path) -> Path:
    """A T5 whose tokenizer is a sentencepiece model alone."""
    from transformers.utils import sentencepiece_model_pb2_new as schema

    tiny.save("t5", folder)
    (folder / "tokenizer.json").unlink()
    document: Any = schema
    model = document.ModelProto()
    for number, text in enumerate(["<pad>", "</s>", "<unk>", *"▁abcdefghijklmnopqrstuvwxyz"]):
        piece = model.pieces.add()
        piece.piece, piece.score, piece.type = text, -number, (3, 3, 2, 1)[min(number, 3)]
    model.trainer_spec.model_type, model.trainer_spec.unk_id = 1, 2
    (folder / "spiece.model").write_bytes(model.SerializeToString())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0})
    )
    return folder


def with_ends(folder: Path, **generation: Any) -> Path:
    """A Llama whose maker set those generation defaults."""
    tiny.save("llama", folder)
    change(folder / "generation_config.json", **generation)
    return folder


def in_dtype(family: str, folder: Path, dtype: str, *, named: bool = True) -> Path:
    """A checkpoint in that dtype; its configuration need not name it."""
    import torch

    model = tiny.tiny(family).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    if not named:
        change(folder / "config.json", dtype=None)
    return folder


def with_parts_of_their_own(folder: Path) -> Path:
    """A T5Gemma in bfloat16: encoder and decoder have configurations of their own."""
    import torch
    from transformers import T5GemmaConfig, T5GemmaForConditionalGeneration

    sizes: Any = {
        "vocab_size": 2048, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0,
        "eos_token_id": 1, "bos_token_id": 3,
    }  # fmt: skip
    config: Any = T5GemmaConfig(encoder=dict(sizes), decoder=dict(sizes), vocab_size=2048)
    model: Any = T5GemmaForConditionalGeneration(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        change(folder / name, decoder_start_token_id=3)
    return folder


def wrapped(folder: Path, prefix: str) -> Path:
    """Weights that were saved with a wrapper's names."""
    import torch

    tiny.save("t5", folder)
    (folder / "model.safetensors").unlink()
    state: Mapping[str, Any] = tiny.tiny("t5").state_dict()
    torch.save(
        {f"{prefix}{name}": weight for name, weight in state.items()}, folder / "pytorch_model.bin"
    )
    return folder


def cutting_tokenizer(folder: Path) -> Path:
    """A tokenizer whose file asks for truncation and padding, and which pads on the left."""
    tiny.save("llama", folder)
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    tokenizer("a", padding="max_length", truncation=True, max_length=8)
    tokenizer.save_pretrained(folder)
    return folder


def adapter(folder: Path, base: Path, *, tokenizer: bool = True, added: int = 0) -> Path:
    """What peft leaves of a training on that base: weights that change its answers, and added tokens."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if added:
        model.resize_token_embeddings(model.config.vocab_size + added, mean_resizing=False)
    config = peft.LoraConfig(
        r=4, task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # as in trainer.model.adapters
        peft.get_peft_model(model, config).save_pretrained(
            str(folder), save_embedding_layers=bool(added)
        )
    if tokenizer:
        tiny.tokenizer().save_pretrained(folder)
    return folder
