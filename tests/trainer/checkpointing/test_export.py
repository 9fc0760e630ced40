"""The exported folder is the base model's in every file but the weights, and what the run must add."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from tests.support import model_folders, tiny
from tests.support.runs import Messages, notices, rows_file, run, settings
from trainer.artifacts.run_folder import RunFolder
from trainer.pretrained.loading import load_model

OF_THE_RUN = {
    "README.md", "adapter", "loss.png", "loss.svg", "metrics.jsonl", "evaluations.jsonl", "run.json",
    "run.toml", "profile.toml", "tracking",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_code_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_folders.own_code_cache(monkeypatch, tmp_path / "modules")


def trained(base: Path, output: Path, **changes: Any) -> Messages:
    """The messages of a run of two steps on that model."""
    workload = {"trust_remote_code", "lora_rank", "dropout"} & changes.keys()
    plain = settings(rows_file(output.parent / "rows.jsonl", 16), output, max_steps=2)
    chosen = replace(plain, **{k: v for k, v in changes.items() if k not in workload})
    own = {name: changes[name] for name in workload}
    return run(replace(chosen, workload=replace(chosen.workload, model=str(base), **own)))


def round_trip(base: Path, folder: Path) -> Path:
    """What transformers alone reads and writes."""
    is_seq2seq = AutoConfig.from_pretrained(base).is_encoder_decoder
    kind: Any = AutoModelForSeq2SeqLM if is_seq2seq else AutoModelForCausalLM
    kind.from_pretrained(base).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def files_of(folder: Path) -> dict[str, Path]:
    """The model's files of a folder by their relative names."""
    found = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    return {
        name: file
        for name, file in found.items()
        if Path(name).parts[0] not in OF_THE_RUN and not name.startswith("checkpoint-")
    }


def differences(plain: Path, exported: Path, *, allowed: set[str]) -> list[str]:
    """Files and keys that differ, but for weights; `allowed` keys may be new in generation_config.json."""
    one, other = files_of(plain), files_of(exported)
    found = sorted(one.keys() ^ other.keys())
    for name in one.keys() & other.keys():
        if name.endswith(".safetensors"):
            shapes = (
                {k: (v.shape, v.dtype) for k, v in load_file(f[name]).items()} for f in (one, other)
            )
            found += [name] if len({repr(each) for each in shapes}) > 1 else []
        elif name == "generation_config.json":
            old, new = (json.loads(each[name].read_text()) for each in (one, other))
            found += [f"{name}: {key}" for key in old.keys() - allowed if old[key] != new.get(key)]
            found += [f"{name}: {key}" for key in new.keys() - old.keys() - allowed]
        elif one[name].read_bytes() != other[name].read_bytes():
            found.append(name)
    return found


NEW = {"_from_model_config", "max_new_tokens"}
"""Keys that the run may add: no maker here set a limit, and the defaults are no longer the model's."""


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_file_but_the_weights_is_the_bases(family: str, tmp_path: Path) -> None:
    """Also with another dropout, which was the run's alone."""
    base = tiny.save(family, tmp_path / "base")
    if family == "t5":
        model_folders.change(base / "config.json", use_cache=False)

    trained(base, tmp_path / "run", dropout=0.5)

    plain = round_trip(base, tmp_path / "plain")
    assert differences(plain, tmp_path / "run", allowed=NEW) == []


MAKERS: dict[str, Callable[[Path], Path]] = {
    "byt5": model_folders.byt5,
    "names of torch.compile": lambda folder: model_folders.wrapped(folder, "_orig_mod."),
    "cutting tokenizer": model_folders.cutting_tokenizer,
    "bf16": lambda folder: model_folders.in_dtype("llama", folder, "bfloat16"),
    "bf16, not named": lambda folder: model_folders.in_dtype(
        "llama", folder, "bfloat16", named=False
    ),
    "bf16 in parts": model_folders.with_parts_of_their_own,
    "fp16": lambda folder: model_folders.in_dtype("t5", folder, "float16"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_folders_that_people_have_come_out_as_transformers_writes_them(
    kind: str, tmp_path: Path
) -> None:
    """A tokenizer's own truncation and padding, and the dtype of the weights."""
    base = MAKERS[kind](tmp_path / "base")

    trained(base, tmp_path / "run")

    plain = round_trip(base, tmp_path / "plain")
    assert differences(plain, tmp_path / "run", allowed=NEW) == []


def test_a_lora_run_exports_the_bases_files_too(tmp_path: Path) -> None:
    """Merged, in the checkpoint's dtype; the adapter is beside it."""
    base = model_folders.in_dtype("llama", tmp_path / "base", "bfloat16")

    trained(base, tmp_path / "run", lora_rank=2)

    plain = round_trip(base, tmp_path / "plain")
    assert differences(plain, tmp_path / "run", allowed=NEW) == []
    assert (tmp_path / "run/adapter/adapter_config.json").is_file()


def test_a_run_on_an_adapter_trains_its_base_and_exports_the_bases_files(tmp_path: Path) -> None:
    """Every weight is trained, the merged adapter's too; the result is a whole model."""
    base = tiny.save("llama", tmp_path / "base")
    adapter = model_folders.adapter(tmp_path / "adapter", base)

    heard = notices(trained(adapter, tmp_path / "run", learning_rate=0.01))

    plain = round_trip(base, tmp_path / "plain")
    before, after = (load_file(f / "model.safetensors") for f in (plain, tmp_path / "run"))
    assert differences(plain, tmp_path / "run", allowed=NEW) == []
    assert not any(torch.equal(after[name], before[name]) for name in before)
    assert not [text for text in heard if text.startswith("training ")]


def test_a_checkpoint_is_a_model_with_the_bases_files(tmp_path: Path) -> None:
    """Its weights stay float32, which a resume needs, and its configuration says so."""
    base = model_folders.in_dtype("llama", tmp_path / "base", "bfloat16")

    trained(base, tmp_path / "run", checkpoint_every=1)

    (checkpoint, *_) = RunFolder(tmp_path / "run").checkpoints()
    config, own = (json.loads((f / "config.json").read_text()) for f in (checkpoint, base))
    assert config == {**own, "dtype": "float32"}
    assert {v.dtype for v in load_file(checkpoint / "model.safetensors").values()} == {
        torch.float32
    }


@pytest.mark.parametrize(
    ("chosen", "dtype", "said"),
    [
        ("auto", torch.bfloat16, "the final model will be bfloat16, as the model's checkpoint"),
        ("fp16", torch.float16, "the final model will be float16, as --export-dtype says"),
        ("fp32", torch.float32, None),
    ],
)
def test_the_dtype_is_the_checkpoints_or_the_chosen_one(
    chosen: str, dtype: torch.dtype, said: str | None, tmp_path: Path
) -> None:
    """One line where it is not the float32 that was trained."""
    base = model_folders.in_dtype("llama", tmp_path / "base", "bfloat16")

    heard = notices(trained(base, tmp_path / "run", export_dtype=chosen))

    assert {v.dtype for v in load_file(tmp_path / "run/model.safetensors").values()} == {dtype}
    assert AutoConfig.from_pretrained(tmp_path / "run").dtype == dtype
    assert [text for text in heard if "final model" in text] == (
        [] if said is None else [f"weights are trained in float32; {said}"]
    )


def generation_of(tmp_path: Path, **maker: Any) -> dict[str, Any]:
    """What a run would write on a model with those defaults of its maker."""
    base = model_folders.with_ends(tmp_path / "base", **maker)
    loaded = load_model(str(base), dropout=None, seed=0)
    original = loaded.original
    generation = original.generation(max_new_tokens=9)
    original.write(tmp_path, loaded.model, dtype=original.dtype, generation=generation)
    values: dict[str, Any] = json.loads((tmp_path / "generation_config.json").read_text())
    return values


@pytest.mark.parametrize(
    ("maker", "written"),
    [([1, 2], [1, 2]), ([2, 4], [2, 4, 1]), (2, [2, 1]), (None, 1), (1, 1)],
)
def test_the_makers_ends_stay_and_the_learnt_one_is_among_them(
    maker: Any, written: Any, tmp_path: Path
) -> None:
    """A chat model that ends with one of two tokens no longer stopped, with one of them alone."""
    assert generation_of(tmp_path, eos_token_id=maker)["eos_token_id"] == written


@pytest.mark.parametrize("limit", ["max_new_tokens", "max_length"])
def test_a_limit_of_the_makers_stays(limit: str, tmp_path: Path) -> None:
    """The data's longest answer is written only where there is none."""
    found = generation_of(tmp_path, **{limit: 777})

    assert found[limit] == 777
    assert len({"max_new_tokens", "max_length"} & found.keys()) == 1


def test_sampling_and_a_forced_token_stay(tmp_path: Path) -> None:
    """They are the maker's choices."""
    maker = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "forced_bos_token_id": 9}

    trained(model_folders.with_ends(tmp_path / "base", **maker), tmp_path / "run")

    found = json.loads((tmp_path / "run/generation_config.json").read_text())
    assert {key: found[key] for key in maker} == maker
    assert 0 < found["max_new_tokens"] <= 16 + 16  # the limits of source and target, together


@pytest.mark.parametrize(
    "maker",
    [
        {"temperature": 0.6, "top_p": 0.9},
        {"do_sample": False, "temperature": 0.6},
        {"num_beams": 1, "early_stopping": True, "length_penalty": 2.0},
        {"suppress_tokens": [7], "bad_words_ids": [[9]], "cache_implementation": "static"},
    ],
)
def test_defaults_that_transformers_does_not_save_stay_as_they_are(
    maker: dict[str, Any], tmp_path: Path
) -> None:
    """Sampling is not turned on, and the ends beside them are not lost."""
    found = generation_of(tmp_path, **maker, eos_token_id=[2, 4])

    assert {key: found.get(key) for key in maker} == maker
    assert found["eos_token_id"] == [2, 4, 1]
    assert found.get("do_sample", False) is False


def test_code_of_a_known_kind_is_written_beside_its_auto_map(tmp_path: Path) -> None:
    """Without trust it is copied and not run; then the export loads with it, as the base does."""
    base = model_folders.known_kind_with_code(tmp_path / "base")

    heard = notices(trained(base, tmp_path / "run"))

    loaded: Any = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run", trust_remote_code=True)
    assert any("my_text_model.py), which is not run" in text for text in heard)
    assert loaded.own_answer() == 42


def test_trusted_code_runs_is_named_and_comes_along(tmp_path: Path) -> None:
    """For a kind of model that transformers does not know."""
    base = model_folders.unknown_kind_with_code(tmp_path / "base")

    heard = notices(trained(base, tmp_path / "run", trust_remote_code=True))

    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "run", trust_remote_code=True)
    assert f"running Python code of {base}: my_lm.py (MyConfig, MyLM)" in heard
    assert type(loaded).__name__ == "MyLM"
    assert "trust_remote_code" not in (tmp_path / "run/run.toml").read_text()


def test_an_auto_map_without_its_files_is_removed(tmp_path: Path) -> None:
    """It would name code that is not there: the model would not load with trust_remote_code."""
    base = model_folders.known_kind_with_code(tmp_path / "base")
    (base / "my_text_model.py").unlink()
    auto_map = {"AutoTokenizer": ["gone.TokenizersBackend", None]}
    model_folders.change(base / "tokenizer_config.json", auto_map=auto_map)

    trained(base, tmp_path / "run")

    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((tmp_path / "run" / name).read_text())
    AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run", trust_remote_code=True)
    AutoTokenizer.from_pretrained(tmp_path / "run", trust_remote_code=True)
