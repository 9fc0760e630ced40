"""Folders that hold something else than a language model's weights: what is said, before any step."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from autotune.errors import ModelError
from tests.support import model_folders, tiny
from trainer.pretrained.loading import load_model

Spoil = Callable[[Path], object]
SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
}  # fmt: skip


def error_of(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(str(folder), dropout=None, seed=0)
    return str(caught.value).replace(str(folder), "M")


def notices_of(folder: Path) -> list[str]:
    return [
        text.replace(str(folder), "M")
        for text in load_model(str(folder), dropout=None, seed=0).notices
    ]


def saved(model: Any, folder: Path) -> Path:
    """A model of another kind, with a tokenizer beside it."""
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "fp8", "exl2"])
def test_quantised_weights_are_refused(method: str, tmp_path: Path) -> None:
    """transformers asks for a package that does not help, or takes the numbers as they are."""
    folder = tiny.save("llama", tmp_path / "model")
    quantised = {"quant_method": method, "load_in_4bit": True}
    model_folders.change(folder / "config.json", quantization_config=quantised)

    assert error_of(folder) == (
        f"the weights of M are quantised ({method}), and training needs whole ones; give the model that "
        f"it was made from; --lora-rank 16 trains it in less memory"
    )


def test_an_adapter_of_a_quantised_model_leads_to_the_whole_one(tmp_path: Path) -> None:
    """QLoRA's adapters name the quantised base."""
    base = tiny.save("llama", tmp_path / "base")
    adapter = model_folders.adapter(tmp_path / "adapter", base)
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    model_folders.change(base / "config.json", quantization_config=quantised)

    assert error_of(adapter) == (
        f"the weights of {base} are quantised (bitsandbytes), and training needs whole ones; write the "
        f"model that it was made from as base_model_name_or_path in adapter_config.json"
    )


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    """transformers makes a causal model of BERT that sees the words which it should learn to write."""
    folder = saved(BertForMaskedLM(BertConfig(vocab_size=2048, **SMALL)), tmp_path)

    assert error_of(folder) == (
        "M is an encoder (bert): it fills gaps in a text, and cannot write one; give a causal or a "
        "seq2seq language model"
    )


def test_a_model_that_writes_no_text_is_refused(tmp_path: Path) -> None:
    """Nothing is wrong with the folder."""
    folder = saved(ViTForImageClassification(ViTConfig(image_size=32, **SMALL)), tmp_path)

    assert error_of(folder) == (
        "M is no language model that can be trained: transformers has no AutoModelForCausalLM for a ViT; "
        "give a causal or a seq2seq language model, which writes text after text"
    )


def test_a_model_without_a_head_is_named(tmp_path: Path) -> None:
    """A reward model has another head."""
    config = tiny.tiny("llama").config
    reward: Any = LlamaForSequenceClassification
    folder = saved(reward(config), tmp_path)

    assert error_of(folder) == (
        "the weights of M do not belong to its config.json: 1 are missing and 0 have another shape (first "
        "lm_head.weight); config.json says that they are of a LlamaForSequenceClassification: give a "
        "LlamaForCausalLM"
    )


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("is_adapter", [False, True])
def test_a_pointer_of_git_lfs_is_named(file: str, is_adapter: bool, tmp_path: Path) -> None:
    """A clone without git-lfs leaves it; its readers say `header too large`."""
    base = tiny.save("llama", tmp_path / "base")
    if is_adapter:
        folder = model_folders.adapter(tmp_path / "adapter", base)
        file = file.replace("model.", "adapter_model.")
    else:
        folder = base
    (folder / file).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 99999\n"
    )

    assert error_of(folder) == (
        f"M/{file} is a pointer of Git LFS, not the file itself; run `git lfs pull` in M, or download the "
        f"model again"
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model-Q4_K_M.gguf", "GGUF, which is quantised"),
        ("onnx/model.onnx", "ONNX"),
        ("tf_model.h5", "TensorFlow's"),
        ("consolidated.00.pth", "the maker's own format"),
        ("model-00001-of-00002.safetensors", "one of several, and their index.json is missing"),
        ("model.fp16.safetensors", "another name"),
    ],
)
def test_weights_of_a_form_that_is_not_read_are_named(name: str, kind: str, tmp_path: Path) -> None:
    """The folder has weights; the error says why they do not count."""
    folder = tiny.save("llama", tmp_path)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / "model.safetensors").rename(folder / name)

    assert error_of(folder) == (
        f"M has a config.json but no weights (model.safetensors); {name} is not read ({kind}); give the "
        f"folder of the same model that save_pretrained wrote"
    )


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_weights_inside_a_trainings_checkpoint_are_found(key: str, tmp_path: Path) -> None:
    """Lightning's and others': all weights are missing then."""
    folder = tiny.save("llama", tmp_path)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({"epoch": 1, key: weights}, folder / "pytorch_model.bin")

    assert error_of(folder).endswith(
        f"they are in {key!r} of M/pytorch_model.bin, which a training wrote: load it with torch.load, and "
        f"save that part alone with torch.save"
    )


@pytest.mark.parametrize("text", ['{"eos_token_id": [1', "[]"])
def test_damaged_generation_defaults_are_refused(text: str, tmp_path: Path) -> None:
    """transformers goes on without them, and the export would have lost the maker's ends."""
    folder = tiny.save("llama", tmp_path)
    (folder / "generation_config.json").write_text(text)

    assert error_of(folder).startswith("M/generation_config.json is damaged (")


def test_a_file_that_is_more_than_weights_is_not_run(tmp_path: Path) -> None:
    """A pickled module: reading it would run its code."""
    folder = tiny.save("llama", tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save(tiny.tiny("llama"), folder / "pytorch_model.bin")

    assert error_of(folder) == (
        "the weights of M are not read: their file holds other things, which may run code; save the model "
        "anew with save_pretrained, which writes model.safetensors"
    )


def test_weights_without_a_place_are_told(tmp_path: Path) -> None:
    """A config.json with fewer layers would drop the others' weights in silence."""
    folder = tiny.save("llama", tmp_path, layers=3)
    model_folders.change(folder / "config.json", num_hidden_layers=2)

    assert notices_of(folder) == [
        "9 weights of M have no place in a LlamaForCausalLM of its config.json and are left out (first "
        "model.layers.2.input_layernorm.weight)"
    ]


def test_an_adapter_whose_weights_have_no_place_is_refused(tmp_path: Path) -> None:
    """Of a base with more layers, or of another task: peft merges the rest in silence."""
    base = tiny.save("llama", tmp_path / "base")
    folder = model_folders.adapter(tmp_path / "adapter", base)
    model_folders.change(base / "config.json", num_hidden_layers=1)

    message = error_of(folder).replace("lora_A.default", "lora_A")  # the oldest peft's name

    assert message.startswith(
        f"the adapter M does not fit its base model {base}: it has no place for 2 weights (first "
        f"base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight); give it the base model"
    )


def test_an_adapter_without_its_weights_is_refused(tmp_path: Path) -> None:
    """peft would ask the hub for a model of the folder's name."""
    base = tiny.save("llama", tmp_path / "base")
    folder = model_folders.adapter(tmp_path / "adapter", base)
    (folder / "adapter_model.safetensors").unlink()

    assert error_of(folder) == (
        "M has an adapter_config.json but no weights (adapter_model.safetensors); copy the folder again, "
        "or save the adapter anew with save_pretrained"
    )


def test_an_adapters_base_that_the_hub_does_not_give_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where there is no network: the user gave the adapter's name alone."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = model_folders.adapter(tmp_path / "adapter", tiny.save("llama", tmp_path / "base"))
    model_folders.change(folder / "adapter_config.json", base_model_name_or_path="someone/base")

    message = error_of(folder)

    assert message.startswith(
        "M is an adapter of 'someone/base', which is not a folder, and the hub"
    )
    assert message.endswith(
        "get the base model, and write its folder as base_model_name_or_path in adapter_config.json"
    )


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings")  # peft 0.18, of any such model
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_an_embedding_of_modules_to_save_fits_with_added_tokens(form: str, tmp_path: Path) -> None:
    """peft writes it twice, under two names; older versions wrote a .bin."""
    import peft

    model: Any = tiny.tiny("llama")
    base = saved(model, tmp_path / "base")
    model.resize_token_embeddings(2050, mean_resizing=False)
    model.config._name_or_path = model.name_or_path = str(base)
    config = peft.LoraConfig(
        r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["embed_tokens"]
    )
    folder = tmp_path / "adapter"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # as in trainer.model.adapters
        peft.get_peft_model(model, config).save_pretrained(str(folder), save_embedding_layers=True)
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    file.unlink()
    if form == "bin":
        torch.save(weights, folder / "adapter_model.bin")
    else:
        save_file(weights, file)

    loaded: Any = load_model(str(folder), dropout=None, seed=0).model

    assert len(loaded.get_input_embeddings().weight) == 2050


def test_a_tokenizer_that_transformers_reads_into_nothing_is_refused(tmp_path: Path) -> None:
    """It takes Qwen2's class for each tokenizer.json of a Qwen2: a run learnt empty answers, exit 0."""
    folder = saved(tiny.tiny("qwen2"), tmp_path)

    assert error_of(folder) == (
        "transformers reads the tokenizer.json of M as a Qwen2Tokenizer, which makes no tokens of "
        "'Hello'; give it a tokenizer of that class, or a kind of model that takes any (like llama)"
    )


def test_a_tokenizer_that_transformers_reads_otherwise_is_told(tmp_path: Path) -> None:
    """The file's own splitting is lost; one of that class is read as it is."""
    from tokenizers import Tokenizer, pre_tokenizers

    good = tiny.save("qwen2", tmp_path / "good")
    other = tiny.save("qwen2", tmp_path / "other")
    file = other / "tokenizer.json"
    tokenizer: Any = Tokenizer.from_file(str(file))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.save(str(file))

    assert notices_of(good) == []
    assert notices_of(other) == [
        "transformers reads the tokenizer.json of M as a Qwen2Tokenizer, which makes other tokens of text "
        "than the file says: those are trained"
    ]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            "{% for m in messages %}{{ m.content }",
            "the model's chat template is damaged: line 1: unexpected '}'; copy the model's folder again, or "
            "correct the template",
        ),
        (
            [{"name": name, "template": "{{ messages }}"} for name in ("rag", "tool_use")],
            "the model has several chat templates (rag, tool_use), and none is called default; give the one "
            "to train with that name, in tokenizer_config.json or as chat_template.jinja",
        ),
    ],
)
def test_a_template_that_can_write_no_row_is_the_models_fault(
    template: Any, said: str, tmp_path: Path
) -> None:
    """The first row of the data was blamed for it."""
    folder = tiny.save("llama", tmp_path)
    model_folders.change(folder / "tokenizer_config.json", chat_template=template)

    assert error_of(folder) == said
