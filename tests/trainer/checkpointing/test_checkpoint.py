"""What a checkpoint holds, that a resume is the run itself, and what a damaged one or a full disk does."""

import copy
import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from autotune.errors import OutputError
from tests.support import tiny
from tests.support.commands import steps
from tests.support.run_folders import contents
from tests.support.runs import Messages, ended, notices, rows_file, run, settings
from tests.support.tokenisers import tokenizer
from trainer.artifacts import own_files
from trainer.artifacts.evaluation_log import Best
from trainer.artifacts.jsonl_log import JsonlLog
from trainer.artifacts.manifest import write_manifest
from trainer.artifacts.run_folder import RunFolder
from trainer.batching.collator import Collator
from trainer.checkpointing.checkpoint import Position, resume, save_checkpoint, verify
from trainer.checkpointing.export import export_model
from trainer.data.encoder import Encoder
from trainer.events import CheckpointSaved, Evaluated, TrainingEnded
from trainer.model.engine import Engine
from trainer.pretrained.loading import load_model
from trainer.pretrained.original import Original


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Enough for this model: several would wait for each other, and longest on a shared machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows_file(tmp_path_factory.mktemp("rows") / "rows.jsonl", 64)


@pytest.fixture(scope="module")
def whole(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 8 steps that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(settings(rows, folder))
    return folder


@pytest.fixture(scope="module")
def stopped(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, stopped after step 5: checkpoints 4 and 5 are kept."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert ended(run(settings(rows, folder), stop_after=5)).interrupted
    return folder


@pytest.fixture
def left(stopped: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to spoil and to resume."""
    return shutil.copytree(stopped, tmp_path / "run")


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def are_equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def an_engine(rows: Path, *, freeze: str | None = None) -> Engine:
    """A model and its optimizer before the first step."""
    model = load_model("chatlm-tiny", dropout=0.0, seed=3).model
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(freeze is None or not name.startswith(freeze))
    engine = tiny.engine(model, dropout=0.0, seed=3)
    engine.preallocate(collator(model, rows).worst_case_batch(1))
    return engine


def collator(model: Any, rows: Path) -> Collator:
    return tiny.collator(model, Encoder(tokenizer(), is_causal=False), rows, longest=16)


def take_step(engine: Engine, rows: Path) -> None:
    batch = collator(engine.unwrapped, rows).batch([1, 2, 3])
    engine.forward_backward([batch], target_tokens=batch.target_tokens)
    engine.optimizer_step(1e-3)


def progress(step: int, best: Best | None = None) -> Position:
    return Position(
        step=step, steps=9, samples=8 * step, seed=3, profile=None, settings={}, best=best
    )


def save(folder: RunFolder, engine: Engine, at: Position, *, keep: int = 2) -> Path:
    return save_checkpoint(folder, engine, at, original(engine), keep=keep)


def original(engine: Engine) -> Original:
    return tiny.original(engine.unwrapped, Encoder(tokenizer(), is_causal=False))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel refuses to write a file beyond that, as a full disk does: Python ignores SIGXFSZ."""
    soft, hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard_limit))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard_limit))


def test_a_resume_is_the_run_itself_bit_for_bit(whole: Path, left: Path, rows: Path) -> None:
    """Stopped after steps 5 and 7: the same weights, the same numbers, and a second resume works."""
    second = run(settings(rows, left), stop_after=7)
    third = run(settings(rows, left))

    assert "resuming after step 5 of 8" in notices(second)
    assert "resuming after step 7 of 8" in notices(third)
    assert are_equal(weights(left), weights(whole))
    for own, other in zip(steps(left), steps(whole), strict=True):
        for key in ("step", "samples", "tokens", "loss", "grad_norm", "learning_rate"):
            assert own[key] == other[key]


def test_a_resume_with_another_cut_ends_with_the_same_weights(
    whole: Path, left: Path, rows: Path
) -> None:
    """To float32's precision: sums come in another order. A loader process cuts and pads alike."""
    run(settings(rows, left, micro_batch=3, overhead=10.0, profile="standard", loader_workers=1))

    own, other = weights(left), weights(whole)
    assert all(torch.allclose(own[key], other[key], rtol=1e-5, atol=1e-5) for key in other)


def test_a_checkpoint_says_where_the_run_is_and_what_it_was_told(stopped: Path) -> None:
    """The order of samples and a step's random numbers follow from seed, samples and step."""
    state = verify(stopped / "checkpoint-5")

    assert (state["step"], state["steps"], state["samples"], state["seed"]) == (5, 8, 40, 3)
    assert state["profile"] == "small"
    assert state["settings"]["effective_batch"] == 8
    assert state["settings"]["workload"]["max_source_length"] == 16
    assert state["frozen"] is None


def test_a_checkpoint_is_safetensors_by_name(stopped: Path) -> None:
    """As the library reads them: each weight once, and Adam's two moments and count of each."""
    model = load_file(stopped / "checkpoint-5" / "model.safetensors")
    optimizer = load_file(stopped / "checkpoint-5" / "optimizer.safetensors")

    assert "shared.weight" in model
    assert "lm_head.weight" not in model
    assert {key.rpartition("/")[0] for key in optimizer} == set(model)
    assert {key.rpartition("/")[2] for key in optimizer} == {"step", "exp_avg", "exp_avg_sq"}
    assert optimizer["shared.weight/step"].item() == 5


def test_a_checkpoint_is_a_model_for_transformers(stopped: Path) -> None:
    """The best one can be used as it is."""
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(stopped / "checkpoint-5")

    saved = weights(stopped / "checkpoint-5")
    assert are_equal({key: model.state_dict()[key] for key in saved}, saved)
    assert len(transformers.AutoTokenizer.from_pretrained(stopped / "checkpoint-5")) > 1000


@pytest.mark.parametrize(("setting", "value"), [("temperature", 0.5), ("early_stopping", "x")])
def test_generation_defaults_that_transformers_refuses_to_save_stop_no_run(
    setting: str, value: float | str, rows: Path, tmp_path: Path
) -> None:
    """It loads them from the hub; the end of a run would be the first to find out."""
    folder, engine = RunFolder(tmp_path), an_engine(rows)
    folder.claim({}, fresh=False)
    setattr(engine.unwrapped.generation_config, setting, value)
    with pytest.raises(ValueError, match=setting):
        engine.unwrapped.generation_config.save_pretrained(tmp_path)

    path = save(folder, engine, progress(1))
    export_model(
        folder, engine, original(engine),
        dtype=torch.float32, max_new_tokens=9, describe=lambda hidden: None,
    )  # fmt: skip

    for folder_of_model in (path, tmp_path):
        written = json.loads((folder_of_model / "generation_config.json").read_text())
        assert written[setting] == value


def truncate(checkpoint: Path) -> None:
    with (checkpoint / "optimizer.safetensors").open("r+b") as file:
        file.truncate(1000)


def flip_a_byte(checkpoint: Path) -> None:
    with (checkpoint / "model.safetensors").open("r+b") as file:
        file.seek(100_000)
        byte = file.read(1)[0]
        file.seek(100_000)
        file.write(bytes([byte ^ 1]))


def change_the_step(checkpoint: Path) -> None:
    file = checkpoint / "state.json"
    file.write_text(file.read_text().replace('"step": 5', '"step": 6'))


def write_nan(checkpoint: Path) -> None:
    """As an older version saved it: the checksum is that of the file."""
    weights = load_file(checkpoint / "model.safetensors")
    weights["shared.weight"][3, 4] = torch.nan
    save_file(weights, checkpoint / "model.safetensors")
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint)


def of_another_type(checkpoint: Path) -> None:
    """As somebody wrote it who knows the manifest."""
    file = checkpoint / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "step": "5"}))
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint)


def a_header_that_lies(checkpoint: Path) -> None:
    """It names more bytes than there are, which would be taken as memory."""
    file = checkpoint / "optimizer.safetensors"
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    name = next(key for key in header if key != "__metadata__")
    header[name] = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint)


def a_link_out_of_it(checkpoint: Path) -> None:
    (checkpoint / "state.json").rename(checkpoint.parent / "state")
    (checkpoint / "state.json").symlink_to(checkpoint.parent / "state")


def a_pipe(checkpoint: Path) -> None:
    (checkpoint / "state.json").unlink()
    os.mkfifo(checkpoint / "state.json")


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (truncate, "optimizer.safetensors has 1,000 bytes instead of "),
    "flipped": (flip_a_byte, "model.safetensors is altered: its checksum is not the manifest's"),
    "altered state": (change_the_step, "state.json is altered"),
    "missing": (lambda c: (c / "model.safetensors").unlink(), "model.safetensors: No such file"),
    "no manifest": (lambda c: (c / "manifest.json").unlink(), "manifest.json: No such file"),
    "bad JSON": (lambda c: (c / "manifest.json").write_text('{"a'), "manifest.json is no JSON"),
    "empty": (lambda c: (c / "manifest.json").write_text("[]"), "manifest.json holds no object"),
    "of others": (lambda c: (c / "manifest.json").write_text("{}"), "does not name model.safetens"),
    "no entry": (
        lambda c: (c / "manifest.json").write_text(
            '{"model.safetensors": 1, "optimizer.safetensors": 1, "state.json": 1}'
        ),
        "manifest.json is altered",
    ),
    "leads out": (
        lambda c: (c / "manifest.json").write_text('{"../../etc": {"bytes": 1, "crc32": 1}}'),
        "manifest.json is altered",
    ),
    "another type": (of_another_type, "state.json lacks a value or has one of another type"),
    "lying header": (
        a_header_that_lies,
        "optimizer.safetensors has a header that does not match its bytes",
    ),
    "link": (a_link_out_of_it, "state.json has "),
    "pipe": (a_pipe, "state.json has 0 bytes instead of "),
    "not finite": (write_nan, "shared.weight in model.safetensors is not finite (inf or NaN)"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(
    damage: str, left: Path, rows: Path
) -> None:
    """The notice names it and its fault; it is set aside, so that its number is free."""
    break_it, fault = DAMAGES[damage]
    folder = RunFolder(left)
    break_it(folder.path / "checkpoint-5")
    engine = an_engine(rows)
    said: list[str] = []

    done = resume(folder, engine, said.append)

    (notice,) = said
    assert done == 4
    assert notice.startswith("checkpoint-5 is damaged (")
    assert fault in notice
    assert notice.endswith("renamed to damaged-checkpoint-5; using checkpoint-4")
    assert [path.name for path in folder.checkpoints()] == ["checkpoint-4"]
    own = dict(engine.unwrapped.named_parameters())
    assert all(torch.equal(own[k], v) for k, v in weights(folder.path / "checkpoint-4").items())


def test_checkpoints_that_are_links_are_resumed_from_and_only_unlinked(
    left: Path, whole: Path, rows: Path, tmp_path: Path
) -> None:
    """As where a disk was too small for them."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for checkpoint in RunFolder(left).checkpoints():
        checkpoint.rename(elsewhere / checkpoint.name)
        checkpoint.symlink_to(elsewhere / checkpoint.name)
    before = contents(elsewhere)

    said = run(settings(rows, left))

    assert "resuming after step 5 of 8" in notices(said)
    assert contents(elsewhere) == before
    assert are_equal(weights(left), weights(whole))
    assert [path.name for path in left.iterdir() if path.is_symlink()] == ["checkpoint-5"]


@pytest.mark.parametrize("linked", [False, True])
def test_a_fresh_run_never_resumes(
    left: Path, whole: Path, rows: Path, tmp_path: Path, linked: bool
) -> None:
    """Whatever is there under a checkpoint's name."""
    for checkpoint in RunFolder(left).checkpoints() if linked else ():
        checkpoint.rename(tmp_path / checkpoint.name)
        checkpoint.symlink_to(tmp_path / checkpoint.name)

    said = run(settings(rows, left, fresh=True))

    assert not any("resuming" in text for text in notices(said))
    assert [step["step"] for step in steps(left)] == list(range(1, 9))
    assert are_equal(weights(left), weights(whole))


def test_a_run_is_not_resumed_with_other_evaluation_data(
    left: Path, rows: Path, tmp_path: Path
) -> None:
    """Its best evaluation and its early stop compare losses on one set."""
    other = rows_file(tmp_path / "other.jsonl", 5)
    assert json.loads((left / "run.json").read_text())["eval_data"] is None
    record = {
        **json.loads((left / "run.json").read_text()),
        "eval_data": {"rows": 4, "tokens": 9, "digest": "a"},
    }
    (left / "run.json").write_text(json.dumps(record))

    with pytest.raises(OutputError) as caught:
        run(settings(rows, left, eval_data=(str(other),)))

    assert str(caught.value).startswith(
        f"the evaluation data of the run in {left} has changed: 4 rows of 9 tokens, now 5 rows of "
    )


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew_unasked(
    left: Path, rows: Path
) -> None:
    """They may be repaired, and the metrics are the only trace: nothing is touched."""
    folder = RunFolder(left)
    for checkpoint in folder.checkpoints():
        truncate(checkpoint)

    with pytest.raises(OutputError) as caught:
        run(settings(rows, folder.path))

    message = str(caught.value)
    assert message.startswith(
        f"no checkpoint in {folder.path} can be read (checkpoint-5: optimizer"
    )
    assert "; checkpoint-4: optimizer.safetensors has 1,000 bytes" in message
    assert message.endswith("; put a good copy back, or use --fresh to start anew")
    assert len(folder.checkpoints()) == 2
    assert len(steps(folder.path)) == 5


def test_the_best_and_the_last_checkpoints_are_kept(rows: Path, tmp_path: Path) -> None:
    """The best is never removed; a better one takes its place."""
    folder, engine = RunFolder(tmp_path), an_engine(rows)
    names = []

    for step, best in ((1, None), (2, 1), (3, 1), (4, 1), (5, 4), (6, 4), (7, 4)):
        at = progress(step, None if best is None else Best(step=best, loss=1.0))
        save(folder, engine, at, keep=1)
        names.append([int(path.name[11:]) for path in folder.checkpoints()])

    assert names == [[1], [1, 2], [1, 3], [1, 4], [4, 5], [4, 6], [4, 7]]


def test_the_best_evaluation_has_a_checkpoint_and_is_in_the_result(
    rows: Path, tmp_path: Path
) -> None:
    """Evaluated each epoch (4 steps of 16), where no checkpoint was due: step 4 has one, and the end."""
    run_settings = settings(
        rows, tmp_path / "run", effective_batch=16, checkpoint_every=100, eval_data=(str(rows),)
    )

    said = run(run_settings)

    losses = {e.step: e.loss for e in said if isinstance(e, Evaluated)}
    result = ended(said).result
    assert list(losses) == [4, 8]
    assert [e.step for e in said if isinstance(e, CheckpointSaved)] == [4, 8]
    assert result["best_step"] == min(losses, key=lambda step: losses[step])
    assert result["best_loss"] == min(losses.values())
    assert verify(tmp_path / "run" / "checkpoint-4")["best"] == {"step": 4, "loss": losses[4]}


def test_a_resume_without_evaluation_data_ends_with_a_model(rows: Path, tmp_path: Path) -> None:
    """The earlier evaluations stay in the log; the card has none of rows that are not there now."""
    output = tmp_path / "run"
    with_data = settings(rows, output, eval_data=(str(rows),), eval_every=2)

    run(with_data, stop_after=5)
    second = run(settings(rows, output))

    assert ended(second).result["steps"] == 8
    assert "## Evaluation" not in (output / "README.md").read_text()
    assert JsonlLog(output / "evaluations.jsonl").read()


def test_an_evaluation_that_a_stop_left_out_is_made_up_for(rows: Path, tmp_path: Path) -> None:
    """Stopped at the end of an epoch: the checkpoint comes first, the evaluation after the resume."""
    run_settings = settings(
        rows, tmp_path / "run", effective_batch=16, checkpoint_every=None, eval_data=(str(rows),)
    )

    first = run(run_settings, stop_after=4)
    second = run(run_settings)

    assert [type(event) for event in first[-2:]] == [CheckpointSaved, TrainingEnded]
    assert not [event for event in first if isinstance(event, Evaluated)]
    assert [e.step for e in second if isinstance(e, Evaluated)] == [4, 8]
    records = JsonlLog(tmp_path / "run" / "evaluations.jsonl").read()
    assert [record["step"] for record in records] == [4, 8]


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(
    whole: Path, rows: Path, tmp_path: Path
) -> None:
    """The write is really refused, in the optimizer's state; with room again, the run resumes."""
    folder = RunFolder(tmp_path / "run")
    heard: Messages = []
    run(settings(rows, folder.path), stop_after=2)

    with files_of_at_most(8 * 2**20), pytest.raises(OutputError) as caught:
        run(settings(rows, folder.path), heard=heard)

    message = str(caught.value)
    assert message.startswith(
        f"cannot write {folder.path / 'checkpoint-4'} (File too large): it needs 1"
    )
    assert message.endswith(" are free; free some (the same command resumes from checkpoint-2)")
    assert "MiB, and " in message
    assert [path.name for path in folder.path.glob("*checkpoint*")] == ["checkpoint-2"]
    assert not list(folder.path.glob(".*"))
    assert verify(folder.path / "checkpoint-2")["step"] == 2
    run(settings(rows, folder.path))
    assert are_equal(weights(folder.path), weights(whole))


def test_metrics_that_cannot_be_written_are_told_with_what_to_do(
    rows: Path, tmp_path: Path
) -> None:
    """A line more than the disk takes."""
    journal = JsonlLog(tmp_path / "metrics.jsonl")
    journal.add({"step": 1})

    with files_of_at_most(20), pytest.raises(OutputError) as caught:
        journal.add({"step": 2, "loss": 1.0})

    assert str(caught.value) == (
        f"cannot write {journal.path} (File too large); free some space, and the same command "
        f"resumes from the last checkpoint, if there is one"
    )
    assert journal.read() == [{"step": 1}]


def test_a_line_that_a_kill_has_torn_is_done_again(whole: Path, left: Path, rows: Path) -> None:
    """So is one of a step after the checkpoint."""
    with (left / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 0.0}\n{"step": 7, "lo')

    run(settings(rows, left))

    assert [record["loss"] for record in steps(left)] == [r["loss"] for r in steps(whole)]


def test_frozen_weights_come_back_from_the_base_model(rows: Path, tmp_path: Path) -> None:
    """They are not written; a folder of half a model does not claim to be one."""
    folder, engine = RunFolder(tmp_path), an_engine(rows, freeze="encoder.")
    take_step(engine, rows)
    again = an_engine(rows, freeze="encoder.")

    path = save(folder, engine, progress(1))
    resume(folder, again, lambda text: None)
    for one in (engine, again):
        take_step(one, rows)

    names = set(weights(path))
    assert names
    assert not [name for name in names if name.startswith("encoder.")]
    assert not (path / "config.json").exists()
    assert are_equal(engine.unwrapped.state_dict(), again.unwrapped.state_dict())


def test_another_base_model_under_frozen_weights_is_refused(rows: Path, tmp_path: Path) -> None:
    """What was trained beside the old ones is nothing beside the new."""
    folder, engine = RunFolder(tmp_path), an_engine(rows, freeze="encoder.")
    save(folder, engine, progress(1))
    other = an_engine(rows, freeze="encoder.")
    with torch.no_grad():
        next(p for p in other.unwrapped.parameters() if not p.requires_grad).add_(1e-3)

    with pytest.raises(OutputError, match="frozen weights are not these"):
        resume(folder, other, lambda text: None)


def test_a_checkpoint_of_another_model_is_refused_before_anything_is_filled(
    rows: Path, tmp_path: Path
) -> None:
    """The first tensor that differs is named."""
    folder = RunFolder(tmp_path)
    path = save(folder, an_engine(rows, freeze="encoder."), progress(1))
    engine = an_engine(rows)
    before = copy.deepcopy(engine.unwrapped.state_dict())

    with pytest.raises(OutputError) as caught:
        resume(folder, engine, lambda text: None)

    assert str(caught.value).startswith(
        f"{path / 'model.safetensors'} does not match this run: encoder.block.0.layer.0"
    )
    assert are_equal(engine.unwrapped.state_dict(), before)


def test_a_final_model_that_is_half_there_claims_nothing(
    left: Path, whole: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files move in one by one, the configuration last; here the tokenizer's cannot move."""
    move = own_files.move

    def fails_at_the_tokenizer(names: list[str], source: Path, target: Path) -> None:
        if "tokenizer.json" in names:
            raise OSError(errno.EIO, "Input/output error")
        move(names, source, target)

    with monkeypatch.context() as patch:
        patch.setattr(own_files, "move", fails_at_the_tokenizer)
        with pytest.raises(OutputError, match="resumes from checkpoint-6"):
            run(settings(rows, left))

    assert not (left / "config.json").exists()
    assert not (left / ".model").exists()
    assert json.loads((left / "run.json").read_text())["finished"] is False
    run(settings(rows, left))
    assert json.loads((left / "run.json").read_text())["finished"] is True
    assert not list(left.glob("kept*"))
    assert are_equal(weights(left), weights(whole))


def test_a_final_model_for_which_the_disk_is_too_full_is_not_begun(left: Path, rows: Path) -> None:
    """safetensors' own writer is refused; checkpoints stand, nothing claims to be a model."""
    folder = RunFolder(left)

    with files_of_at_most(2**20), pytest.raises(OutputError) as caught:
        run(settings(rows, left, checkpoint_every=100))

    assert str(caught.value).startswith(f"cannot write {folder.path / 'model.safetensors'} (")
    assert not (folder.path / "config.json").exists()
    assert [path.name for path in folder.checkpoints()] == ["checkpoint-4", "checkpoint-5"]
