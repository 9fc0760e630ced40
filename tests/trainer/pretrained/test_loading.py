"""Models and their folders: what is loaded, and what is said of what cannot be."""

import importlib.util
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from autotune.choices import MODEL_PRESET_NAMES
from autotune.errors import ModelError
from tests.support import model_folders, tiny
from tests.support.runs import rows_file, run, settings
from trainer.pretrained.load_errors import load_error
from trainer.pretrained.loading import load_encoder, load_model
from trainer.pretrained.presets import MODEL_PRESETS


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """chatlm-tiny as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    loaded = load_model("chatlm-tiny", dropout=None, seed=0)
    loaded.model.save_pretrained(folder)
    loaded.encoder.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(saved, tmp_path / "model")


def error_of(name: str | Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(str(name), dropout=None, seed=0)
    return str(caught.value)


def configure(model: Path, **values: Any) -> None:
    model_folders.change(model / "config.json", **values)


def test_a_folder_is_loaded_as_it_was_saved(saved: Path) -> None:
    """Weights, tokenizer, and the dropout that is asked for."""
    preset = load_model("chatlm-tiny", dropout=None, seed=0)

    loaded = load_model(str(saved), dropout=0.25, seed=1)

    assert loaded.model.config.dropout_rate == 0.25
    assert loaded.encoder.tokenizer_hash == preset.encoder.tokenizer_hash
    for name, weight in preset.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], weight), name


@pytest.mark.parametrize("name", ["chatlm-tini", "chatlm-02b", "Chatlm-tiny"])
def test_a_name_near_a_preset_is_answered_with_it(name: str) -> None:
    """At once: the hub is not asked for half a minute first."""
    near = "chatlm-0.2b" if "2" in name else "chatlm-tiny"

    assert error_of(name) == f"there is no model {name!r}; did you mean {near}?"


def test_a_path_without_a_folder_is_not_asked_of_the_hub(tmp_path: Path) -> None:
    """Neither is a file, nor a path of Windows'."""
    file = tmp_path / "model.bin"
    file.touch()
    presets = "presets: chatlm-0.2b, chatlm-tiny"

    assert error_of("./gone") == f"there is no model folder ./gone; {presets}"
    assert error_of("a/b/c") == f"there is no model folder a/b/c; {presets}"
    assert error_of(file) == f"{file} is a file, and a model is a folder; give --model {tmp_path}"
    assert error_of(r"C:\models\qwen") == rf"there is no model folder C:\models\qwen; {presets}"


def test_a_model_that_the_hub_does_not_give_is_named() -> None:
    """With the reason and the presets."""
    message = error_of("someone/nothing")

    assert message.startswith(
        "'someone/nothing' is not a preset or a folder, and the hub does not give it ("
    )
    assert message.endswith("); presets: chatlm-0.2b, chatlm-tiny")


SAVE_BOTH = "save the model and its tokenizer there, both with save_pretrained"


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("model.safetensors", f"has a config.json but no weights (model.safetensors); {SAVE_BOTH}"),
        ("tokenizer.json", f"has a config.json but no tokenizer (tokenizer.json); {SAVE_BOTH}"),
        (
            "config.json",
            "is not a model folder: it has no config.json; give --model a folder that "
            "save_pretrained wrote, or a preset: chatlm-0.2b, chatlm-tiny",
        ),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused(model: Path, file: str, said: str) -> None:
    """transformers would make up an empty tokenizer, and train on nothing but unknown tokens."""
    (model / file).unlink()

    assert error_of(model) == f"{model} {said}"


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5])
@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_that_is_cut_off_is_the_models_fault(model: Path, file: str, share: float) -> None:
    """Each library has errors of its own for it."""
    whole = (model / file).read_bytes()
    (model / file).write_bytes(whole[: int(len(whole) * share)])

    message = error_of(model)

    assert message.startswith(f"cannot load the model in {model}: ")
    assert message.endswith("; copy the folder again, or save it anew with save_pretrained")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ({"num_layers": 3}, "8 are missing and 0 have another shape"),
        ({"d_model": 64}, "0 are missing and 45 have another shape"),
    ],
)
def test_weights_of_another_configuration_are_refused(
    model: Path, change: dict[str, int], counts: str
) -> None:
    """What they lack would be random, and nobody would know."""
    configure(model, **change)

    message = error_of(model)

    assert message.startswith(
        f"the weights of {model} do not belong to its config.json: {counts} (first "
    )
    assert message.endswith("); copy both from one model")


def test_an_unknown_or_wrong_configuration_is_refused(model: Path) -> None:
    """With what transformers says of it."""
    configure(model, d_model="wide")
    wrong = error_of(model)
    configure(model, model_type="t9")
    unknown = error_of(model)

    assert "Validation error for field 'd_model'" in wrong
    assert "model type `t9`" in unknown


def weights_of(name: str | Path) -> dict[str, Any]:
    return load_model(str(name), dropout=None, seed=0).model.state_dict()


def are_equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_tokenizer_of_bytes_needs_no_file(tmp_path: Path) -> None:
    """ByT5's."""
    encoder = load_encoder(str(model_folders.byt5(tmp_path)))

    assert encoder.tokenizer("hi").input_ids == [107, 108, 1]


@pytest.mark.parametrize("family", ["t5", "llama", "gpt2", "bart"])
@pytest.mark.parametrize("settings", [None, "{}"])
def test_an_empty_tokenizer_is_refused(family: str, settings: str | None, tmp_path: Path) -> None:
    """transformers makes one, or says what no user understands; settings alone are no vocabulary."""
    tiny.save(family, tmp_path)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(settings)

    assert error_of(tmp_path) == (
        f"{tmp_path} has a config.json but no tokenizer (tokenizer.json); {SAVE_BOTH}"
    )


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """As if these packages were not installed."""

    def find(module: str) -> Any:
        return None if module in packages else importlib.util.find_spec(module)

    for module in ("sources", "load_errors"):
        monkeypatch.setattr(f"trainer.pretrained.{module}.find_spec", find)


@pytest.mark.parametrize("package", ["sentencepiece", "protobuf"])
def test_a_package_that_a_tokenizer_needs_is_named(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers tries tiktoken next, and asks for that."""
    folder = model_folders.spiece_only(tmp_path)
    without(monkeypatch, {"protobuf": "google.protobuf"}.get(package, package))
    if package == "protobuf":
        monkeypatch.setattr(
            "trainer.pretrained.load_errors._is_installed",
            lambda module: module != "google.protobuf",
        )

    assert error_of(folder) == (
        f"the tokenizer of {folder} needs {package}, which is not installed; "
        f"run `pip install {package}`"
    )


def test_a_tiktoken_file_asks_for_tiktoken(tmp_path: Path) -> None:
    """Llama 3's is called tokenizer.model too."""
    if importlib.util.find_spec("tiktoken") is not None:
        pytest.skip("tiktoken is installed")
    tiny.save("llama", tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\nIw== 2\n")

    assert error_of(tmp_path).endswith(
        "needs tiktoken, which is not installed; run `pip install tiktoken`"
    )


@pytest.mark.parametrize(
    ("error", "package"),
    [
        (ModuleNotFoundError("No module named 'jieba'", name="jieba"), "jieba"),
        (ModuleNotFoundError("No module named 'google'", name="google.protobuf"), "protobuf"),
        (ImportError("packages not found: einops. Run `pip install einops`"), "einops"),
        (ImportError("X requires the Sacremoses library but it was not found"), "sacremoses"),
        (ImportError("blobfile is not installed. Please install it by running `pip install blobfile`."), "blobfile"),
    ],
)  # fmt: skip
def test_a_missing_package_is_what_the_error_or_its_cause_names(
    error: ImportError, package: str
) -> None:
    """As transformers, tiktoken and Python word it."""
    outer = ValueError("could not load")
    outer.__cause__ = error

    assert str(load_error("./model", outer)) == (
        f"./model needs {package}, which is not installed; run `pip install {package}`"
    )


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("_orig_mod.", "_orig_mod. (torch.compile)"),
        ("net.", "net. in front"),
        ("module.", "module. (DistributedDataParallel)"),
        ("module._orig_mod.", "_orig_mod. (torch.compile) and module. (DistributedDataParallel)"),
    ],
)
def test_weights_that_a_wrapper_named_are_read_without_its_prefix(
    prefix: str, said: str, tmp_path: Path
) -> None:
    """And the user is told."""
    plain = tiny.save("t5", tmp_path / "plain")
    folder = model_folders.wrapped(tmp_path / "wrapped", prefix)

    loaded = load_model(str(folder), dropout=None, seed=0)

    assert are_equal(loaded.model.state_dict(), weights_of(plain))
    assert loaded.notices == (f"the weights of {folder} have names with {said}: read without it",)


@pytest.mark.parametrize("has_tokenizer", [True, False])
@pytest.mark.parametrize("place", ["as it is", "beside"])
def test_an_adapter_is_loaded_on_its_base(
    has_tokenizer: bool, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged, so that it answers as peft's model does; the base may be named from the adapter's folder."""
    base = tiny.save("llama", tmp_path / "base")
    folder = model_folders.adapter(tmp_path / "adapter", base, tokenizer=has_tokenizer)
    if place == "beside":
        model_folders.change(folder / "adapter_config.json", base_model_name_or_path="../base")
    ids = torch.tensor([[5, 6, 7, 8]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # as in trainer.model.adapters
        plain = AutoModelForCausalLM.from_pretrained(base)
        adapted: Any = peft.PeftModel.from_pretrained(plain, str(folder))

    loaded = load_model(str(folder), dropout=None, seed=0)

    model: Any = loaded.model
    assert torch.allclose(model(ids).logits, adapted(ids).logits, atol=1e-5)
    assert not torch.allclose(
        model(ids).logits, AutoModelForCausalLM.from_pretrained(base)(ids).logits
    )
    assert not [name for name in model.state_dict() if "lora" in name]
    assert load_encoder(str(folder)).tokenizer_hash == load_encoder(str(base)).tokenizer_hash
    assert "merged into its base model" in loaded.notices[0]


def test_tokens_that_were_added_with_an_adapter_are_there(tmp_path: Path) -> None:
    """peft saves the resized embeddings, which do not fit the base model as it is."""
    base = tiny.save("llama", tmp_path / "base")
    folder = model_folders.adapter(tmp_path / "adapter", base, added=3)

    loaded = load_model(str(folder), dropout=None, seed=0)

    saved = load_file(folder / "adapter_model.safetensors")
    embedding = saved["base_model.model.model.embed_tokens.weight"]
    assert torch.equal(loaded.model.state_dict()["model.embed_tokens.weight"], embedding)
    assert loaded.original.config.vocab_size == 2051


def test_an_adapter_that_cannot_be_loaded_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its base is gone, or an adapter too, or another model; or peft is missing."""
    base = tiny.save("llama", tmp_path / "base")
    folder = model_folders.adapter(tmp_path / "adapter", base)
    config = folder / "adapter_config.json"

    with monkeypatch.context() as patch:
        without(patch, "peft")
        no_peft = error_of(folder)
    model_folders.change(config, base_model_name_or_path="/gone/base")
    gone = error_of(folder)
    model_folders.change(config, base_model_name_or_path=str(tiny.save("gpt2", tmp_path / "other")))
    other = error_of(folder)
    second = model_folders.adapter(tmp_path / "second", base)
    model_folders.change(config, base_model_name_or_path=str(second))
    chained = error_of(folder)
    config.write_text("[]")
    damaged = error_of(folder)

    assert no_peft == (
        f"{folder} is an adapter, and peft, which reads it, is not installed; run `pip install peft`"
    )
    assert gone == (
        f"{folder} is an adapter of /gone/base, and there is no such folder; put its base model there, "
        f"or write the folder where it is as base_model_name_or_path in its adapter_config.json"
    )
    assert other.startswith(f"the adapter {folder} does not fit its base model {tmp_path}/other: ")
    assert chained.startswith(f"{folder} is an adapter of {second}, which is an adapter too; merge")
    assert damaged.startswith(f"{config} is damaged (")


def test_the_adapter_of_a_presets_run_leads_to_the_merged_model(tmp_path: Path) -> None:
    """A preset's weights are random: nobody has the base that the adapter was trained on."""
    rows = rows_file(tmp_path / "rows.jsonl", 8)
    plain = settings(rows, tmp_path / "run", max_steps=1)
    run(replace(plain, workload=replace(plain.workload, lora_rank=2)))

    message = error_of(tmp_path / "run/adapter")

    assert message == (
        f"{tmp_path}/run/adapter is an adapter, and its base model is not known: "
        f"base_model_name_or_path in its adapter_config.json is empty; "
        f"give --model {tmp_path}/run, the merged model"
    )
    load_model(str(tmp_path / "run"), dropout=None, seed=0)


def test_the_adapter_of_a_run_is_the_merged_model_on_its_base(tmp_path: Path) -> None:
    """`--model RUN/adapter` trains on from where the run ended."""
    base = tiny.save("llama", tmp_path / "base")
    plain = settings(rows_file(tmp_path / "rows.jsonl", 8), tmp_path / "run", max_steps=2)
    run(
        replace(
            plain,
            learning_rate=0.1,
            workload=replace(plain.workload, model=str(base), lora_rank=2),
        )
    )

    adapted, merged = (weights_of(tmp_path / name) for name in ("run/adapter", "run"))

    assert all(torch.allclose(adapted[key], merged[key], atol=1e-6) for key in merged)
    assert not are_equal(merged, weights_of(base))


@pytest.mark.parametrize(
    ("make", "file"),
    [
        (model_folders.unknown_kind_with_code, "my_lm.py"),
        (model_folders.tokenizer_with_code, "my_tokenizer.py"),
    ],
)
def test_code_of_a_models_own_is_refused_by_name_and_run_when_asked(
    make: Callable[[Path], Path], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is asked on the terminal."""
    model_folders.own_code_cache(monkeypatch, tmp_path / "code")
    monkeypatch.setattr("builtins.input", lambda prompt: pytest.fail("asked on the terminal"))
    folder = make(tmp_path / "model")

    refused = error_of(folder)
    loaded = load_model(str(folder), dropout=None, seed=0, trust_remote_code=True)

    assert refused == (
        f"{folder} needs Python code of its own ({file}), which is not run by default; "
        f"read the code, and give --trust-remote-code if you trust it"
    )
    assert loaded.notices[0].startswith(f"running Python code of {folder}: {file} (")


def test_an_encoder_is_the_models_and_needs_no_weights(saved: Path, model: Path) -> None:
    """Configuration and tokenizer are read alone."""
    (model / "model.safetensors").write_bytes(b"nothing")

    encoder = load_encoder(str(model))

    assert encoder.tokenizer_hash == load_encoder("chatlm-tiny").tokenizer_hash
    assert not encoder.is_causal


def test_the_presets_are_those_that_a_profile_knows() -> None:
    """A name among them is no folder."""
    assert MODEL_PRESETS.keys() == set(MODEL_PRESET_NAMES)
