"""Models and their folders: what is loaded, and what is said of what cannot be."""

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from autotune.choices import ModelPreset
from autotune.errors import ModelError
from trainer.model.loading import MODEL_PRESETS, load_model


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
    file = model / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


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
    """Neither is a file."""
    file = tmp_path / "model.bin"
    file.touch()
    presets = "presets: chatlm-0.2b, chatlm-tiny"

    assert error_of("./gone") == f"there is no model folder ./gone; {presets}"
    assert error_of("a/b/c") == f"there is no model folder a/b/c; {presets}"
    assert error_of(file) == f"there is no model folder {file}; {presets}"


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
        ("model.safetensors", f"has a config.json but no weights (*.safetensors); {SAVE_BOTH}"),
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


def test_the_presets_are_those_that_a_profile_knows() -> None:
    """A name among them is no folder."""
    assert MODEL_PRESETS.keys() == set(get_args(ModelPreset))
