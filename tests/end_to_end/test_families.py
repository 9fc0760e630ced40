"""`chatlm train` on models of other families and with other ways of training, end to end."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

import profiles
from tests.end_to_end.test_autotune_emulated import check
from tests.support.commands import output_of, plant_bombs, steps
from tests.support.runs import chosen, ended, notices, rows_file, run
from tests.support.tiny import save

PROFILE = """\
schema = 1
[batch]
micro_batch_size = 8
gradient_accumulation_steps = 2
effective_batch_size = 16
[run]
max_source_length = 32
max_target_length = 32
{run}
"""


def options(folder: Path, run: str) -> dict[str, Any]:
    """What a run in that folder is told, with those keys in the profile's `[run]`."""
    (folder / "p.toml").write_text(PROFILE.format(run=run))
    rows, asked = rows_file(folder / "rows.jsonl", 400), rows_file(folder / "asked.jsonl", 8)
    return {
        "profile": folder / "p.toml", "output": folder / "run", "data": (str(rows),),
        "eval_data": (str(asked),), "generate_rows": 4, "seed": 5, "max_steps": 6,
    }  # fmt: skip


def test_a_llama_of_the_users_own_is_trained_whole(tmp_path: Path) -> None:
    """By Adafactor on noisy embeddings with checkpointed activations, from a local folder."""
    save("llama", tmp_path / "llama")
    keys = 'optimizer = "adafactor"\nneftune_alpha = 5.0\ngradient_checkpointing = true'

    said = run(chosen(**options(tmp_path, keys), model=str(tmp_path / "llama"), learning_rate=1e-2))

    records = steps(tmp_path / "run")
    model: Any = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "run")
    answer = model.generate(
        **tokenizer("你好", return_tensors="pt"), min_new_tokens=3, max_new_tokens=3
    )
    assert not any("parameters (" in text for text in notices(said))
    assert records[-1]["loss"] < records[0]["loss"]
    assert not any(record["skipped"] for record in records)
    assert answer.shape[1] > 3
    assert not (tmp_path / "run/adapter").exists()


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a user who trained adapters for a T5, undisturbed; and what was said."""
    folder = tmp_path_factory.mktemp("lora")
    save("t5", folder / "t5")
    said = run(chosen(**options(folder, "lora_rank = 4"), model=str(folder / "t5")))
    return folder, notices(said)


def test_the_export_of_a_lora_run_loads_by_transformers_alone(
    adapted: tuple[Path, list[str]],
) -> None:
    """Merged: every weight is where the base's is, and those that have adapters differ."""
    folder, said = adapted
    kind: Any = hf.AutoModelForSeq2SeqLM

    model, report = kind.from_pretrained(folder / "run", output_loading_info=True)

    base = kind.from_pretrained(folder / "t5").state_dict()
    moved = {n for n, w in model.state_dict().items() if not torch.equal(w, base[n])}
    config = json.loads((folder / "run/adapter/adapter_config.json").read_text())
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert moved
    assert all(name.endswith((".q.weight", ".v.weight")) for name in moved)
    assert any(text.startswith("training 3,072 of") for text in said)
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 8, "LORA")


def test_a_lora_run_resumes_from_its_checkpoint(
    adapted: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """Stopped after its second step, it ends with the undisturbed run's weights."""
    folder, _ = adapted
    own = options(folder, "lora_rank = 4") | {"output": tmp_path / "run"}
    settings = chosen(**own, model=str(folder / "t5"))

    first = run(settings, stop_after=2)
    second = run(settings)

    assert ended(first).interrupted
    assert "resuming after step 2 of 6" in notices(second)
    merged, undisturbed = (load_file(f / "run/model.safetensors") for f in (tmp_path, folder))
    assert merged.keys() == undisturbed.keys()
    for name in merged:
        assert torch.allclose(merged[name], undisturbed[name], atol=1e-6), name


def test_a_compiled_run_is_the_run_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and norms of each step to 1e-5, on two processes; traced, not by inductor (a minute here)."""
    monkeypatch.setitem(os.environ, "CHATLM_COMPILE_BACKEND", "eager")
    save("llama", tmp_path / "llama", layers=1)

    found = options(tmp_path, "compile = true")
    output_of(
        tmp_path, "train", "--device", "cpu", "--plain", "--profile", "p.toml", "--model", "llama",
        "--data", "rows.jsonl", "--seed", "5", "--max-steps", "4", "--output-dir", "fast",
        "--num-processes", "2",
    )  # fmt: skip
    (tmp_path / "p.toml").write_text(PROFILE.format(run=""))
    found |= {"output": tmp_path / "plain", "max_steps": 4, "model": str(tmp_path / "llama")}
    run(chosen(**found))

    pairs = list(zip(steps(tmp_path / "fast"), steps(tmp_path / "plain"), strict=True))
    assert len(pairs) == 4
    for fast, plain in pairs:
        assert fast["loss"] == pytest.approx(plain["loss"], rel=1e-5)
        assert fast["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)


def test_a_model_of_experts_is_tuned_and_trained_on_two_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the commands; each rank has its card and leaves other experts out.

    Beside modules of our names, under a long TMPDIR of two lines, where torchrun, gloo, loader processes and our
    own socket make files.
    """
    temporary = tmp_path.joinpath(*["ü\n" + "d" * 60] * 3)
    temporary.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(temporary))
    plant_bombs(tmp_path)
    save("switch", tmp_path / "switch")
    rows_file(tmp_path / "rows.jsonl", 40)
    chosen = ("--device", "cpu", "--plain", "--model", "switch", "--data", "rows.jsonl")

    tuned = output_of(tmp_path, "autotune", *chosen, "--num-processes", "2", "--max-batch", "2",
                      "--vram-limit", "2GiB", "--target-vram", "0.9", "--json")  # fmt: skip
    document = json.loads(tuned)
    profile = profiles.load(str(tmp_path / document["profile"]))
    with_loader = profile.run.model_copy(update={"loader_workers": 1})
    profiles.save(profile.model_copy(update={"run": with_loader}), tmp_path / "own.toml")
    output_of(tmp_path, "train", *chosen, "--profile", "own.toml", "--max-steps", "3",
              "--output-dir", "run")  # fmt: skip

    check(document, tmp_path)
    assert document["micro_batch_size"] == 2
    assert len(document["devices"]) == profile.fingerprint.world_size == 2
    assert document["effective_batch_size"] <= 4 * document["gradient_accumulation_steps"]
    assert [step["step"] for step in steps(tmp_path / "run")] == [1, 2, 3]
    hf.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run")
