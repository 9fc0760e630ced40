"""Run folders: checked, claimed and cleared, with their journals, checkpoints and run files."""

import json
import os
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from safetensors.numpy import save

import profiles
from autotune import files
from bench.fuzz.case import Broken, Case, Make, Place, Reader, below, snapshot
from bench.fuzz.mutations import (
    TEXTS,
    as_json,
    as_toml,
    damage_bytes,
    damage_document,
    damage_place,
    is_whole,
)
from bench.fuzz.profiles import RUN
from trainer.artifacts.evaluation_log import EvaluationHistory
from trainer.artifacts.jsonl_log import JsonlLog
from trainer.artifacts.manifest import NAME, Damaged, write_manifest
from trainer.artifacts.run_folder import RunFolder
from trainer.artifacts.run_record import DataRecord
from trainer.checkpointing.checkpoint import FORMAT, verify
from trainer.config.run_config import load_run
from trainer.config.settings import TrainSettings, WorkloadSettings

KEY = TrainSettings(
    workload=WorkloadSettings(), profile="fast", micro_batch=4, effective_batch=8
).run_key()
DATA = DataRecord(rows=40, tokens=900, digest="ab" * 32)
STEPS = 4
FOREIGN = {
    "notes.txt": b"mine", "rows.jsonl": b"{}\n", "checkpoint-best/weights.bin": b"\x00" * 64, "plots/mine.png": b"png",
    ".hidden": b"mine", "model.safetensors.bak": b"mine", "checkpoint-4.old/x": b"mine",
}  # fmt: skip
"""Files of the user's own within the folder."""
OF_THE_USER = tuple(name.split("/")[0] for name in FOREIGN)
NAMES = ("..", ".", "", "../", "../run", "../beside.txt", "../..", "notes.txt", "plots", "./plots", "checkpoint-best", "run.json", "../../../outside/canary.txt", "x\x00y")  # fmt: skip
"""Names that a hostile run.json or manifest may have; the farthest is still within the case's place."""
EXTRA = (
    "checkpoint-²", "checkpoint-٣", "checkpoint-", "checkpoint--1", "checkpoint-00004", "checkpoint-6", ".checkpoint-6",
    ".model", "damaged-checkpoint-4", "damaged-checkpoint-2", ".run.json", f"checkpoint-{'9' * 200}", "adapter", "x\x1b[2Jy",
    "\u202ename", ".lock", "run.json.lock", ".run.lock",
)  # fmt: skip
"""What may lie in a run's folder beside what a run leaves."""


def prepare(folder: Path) -> Make:
    """A run with two checkpoints that goes on, and one that is finished."""
    going, finished = folder / "going", folder / "finished"
    write_run(going, is_finished=False)
    write_run(finished, is_finished=True)
    return lambda place, draw: _make(place, draw, (going, finished))


def write_run(path: Path, *, is_finished: bool) -> None:
    run = RunFolder(path)
    run.claim(KEY, fresh=False, learning_rate=1e-3, data=DATA)
    for step in range(1, STEPS + 1):
        run.metrics.add({"step": step, "loss": 2.0 / step, "tokens": 90, "skipped": False})
        run.evaluations.add({"step": step, "loss": 3.0 / step, "perplexity": 2.0})
    for step in (2, 4):
        _write_checkpoint(path / f"checkpoint-{step}", step)
    (path / "run.toml").write_bytes(as_toml({**RUN, "profile": "profile.toml"}))
    (path / "profile.toml").write_bytes((profiles.store.PRESETS / "fast.toml").read_bytes())
    (path / "loss.svg").write_text("{}")
    (path / "tracking").mkdir()
    (path / "tracking" / "events").write_text("{}")
    if is_finished:
        export(run)
        run.finish()
    for name, data in FOREIGN.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(data)


def export(run: RunFolder) -> None:
    """Puts the final model's files into the run's folder."""
    hidden = run.path / ".model"
    files.remove(hidden)
    for name in ("config.json", "tokenizer.json", "README.md", "special_tokens_map.json", "adapter/adapter_config.json"):  # fmt: skip
        (hidden / name).parent.mkdir(parents=True, exist_ok=True)
        (hidden / name).write_text("{}")
    (hidden / "model.safetensors").write_bytes(_tensors())
    run.place_model(hidden)
    hidden.rmdir()


def _tensors() -> bytes:
    data: bytes = save({"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 3), np.float32)})
    return data


def _write_checkpoint(path: Path, step: int) -> None:
    path.mkdir()
    state = {
        "format": FORMAT, "step": step, "steps": STEPS, "samples": 8 * step, "seed": 0, "profile": "fast",
        "settings": {"workload": {}}, "best": {"step": 2, "loss": 1.5}, "frozen": None, "scaler": None, "optimizer": {},
    }  # fmt: skip
    (path / "state.json").write_text(json.dumps(state, indent=1))
    for name in ("model", "optimizer"):
        (path / f"{name}.safetensors").write_bytes(_tensors())
    write_manifest(path)


def _make(place: Place, draw: Random, originals: Sequence[Path]) -> Case:
    path = place.work / "models" / "run"
    shutil.copytree(draw.choice(originals), path)
    for _ in range(draw.choice((1, 1, 2))):
        _damage(path, draw, place)
    if draw.random() < 0.02:  # a link may lead to another folder of the user's
        elsewhere = shutil.copytree(place.outside, place.work / "elsewhere")
        damage_place(path, draw, elsewhere)
    kept = [path / name for name in FOREIGN] + [place.work / "models" / "beside.txt"]
    kept[-1].write_text("mine")
    return Case(readers(path, draw), kept=kept)


def _damage(path: Path, draw: Random, place: Place) -> None:
    names = sorted(os.path.relpath(file, path) for file in below(path))
    own = [path / name for name in names if not name.startswith((".", *OF_THE_USER))]
    match draw.randrange(12):
        case 0 | 1 | 2 | 3:
            _rewrite_json(path / "run.json", draw)
        case 4 | 5:
            _damage_checkpoint(path, draw)
        case 6:
            _damage_journal(path / draw.choice(("metrics.jsonl", "evaluations.jsonl")), draw)
        case 7:
            file = path / "run.toml"
            if is_whole(file):
                file.write_bytes(as_toml(damage_document(RUN, draw)))
        case 8:
            file = draw.choice([file for file in own if is_whole(file)])
            file.write_bytes(damage_bytes(file.read_bytes(), draw))
        case 9 | 10:
            damage_place(draw.choice(own), draw, place.outside)
        case _:
            extra = path / draw.choice(EXTRA)
            if not os.path.lexists(extra):
                damage_place(extra, draw, place.outside)


def _rewrite_json(file: Path, draw: Random) -> None:
    document = _read(file)
    if document is not None:
        damaged = damage_document(document, draw, (*TEXTS, *NAMES))
        if draw.random() < 0.3 and isinstance(damaged, dict):
            name = draw.choice(NAMES)
            damaged["model"] = draw.choice(([name], ["config.json", name], [name, 1], name))
        file.write_bytes(as_json(damaged, draw))


def _read(file: Path) -> Any:
    """The document of a file that nothing has damaged yet, else None."""
    try:
        return json.loads(file.read_bytes()) if is_whole(file) else None
    except (ValueError, RecursionError):
        return None


def _damage_checkpoint(path: Path, draw: Random) -> None:
    """Changes a file; mostly the manifest is made to agree."""
    folder = path / f"checkpoint-{draw.choice((2, 4))}"
    if folder.is_symlink() or not is_whole(folder / NAME):
        return
    file = folder / draw.choice(("state.json", NAME, "model.safetensors"))
    if file.suffix == ".json":
        _rewrite_json(file, draw)
    elif is_whole(file) and (data := file.read_bytes()) == _tensors():
        (length,) = struct.unpack("<Q", data[:8])
        header = damage_document(json.loads(data[8 : 8 + length]), draw)
        text = as_json(header, draw)
        file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    if file.name != NAME and draw.random() < 0.7 and all(map(is_whole, folder.iterdir())):
        (folder / NAME).unlink()
        write_manifest(folder)


def _damage_journal(file: Path, draw: Random) -> None:
    lines = file.read_bytes().split(b"\n")[:-1] if is_whole(file) else []
    if not lines:
        return
    for _ in range(draw.randrange(1, 3)):
        number = draw.randrange(len(lines))
        try:
            lines[number] = as_json(damage_document(json.loads(lines[number]), draw), draw)
        except (ValueError, RecursionError):
            lines[number] = b"{"
    file.write_bytes(b"\n".join(lines) + b"\n" * draw.randrange(2))


def readers(path: Path, draw: Random) -> list[Reader]:
    run = RunFolder(path)
    step = draw.randrange(STEPS + 1)

    def damage_of(checkpoint: Path) -> str | None:
        try:
            verify(checkpoint)
        except Damaged as damage:
            return str(damage)
        return None

    def check_checkpoints() -> str:
        return "\n".join(filter(None, map(damage_of, run.checkpoints())))

    def set_aside() -> None:
        for checkpoint in run.checkpoints():
            if damage_of(checkpoint):
                run.set_aside(checkpoint)

    return [
        lambda: run.check(KEY, fresh=False),
        lambda: run.check(KEY, fresh=True),
        *(history_of(log) for log in (run.metrics, run.evaluations)),
        check_checkpoints,
        lambda: load_run(path / "run.toml"),
        lambda: profiles.load(str(path / "profile.toml")),
        resumed(run),
        set_aside,
        *((lambda log=log: log.forget_after(step)) for log in (run.metrics, run.evaluations)),
        lambda: claim(run, fresh=True),
    ]


def claim(run: RunFolder, *, fresh: bool) -> None:
    """Takes the folder as a run does; with `fresh` the new run saves its model and ends."""
    with run.locked():
        run.settle()
        run.claim(KEY, fresh=fresh, learning_rate=1e-3, data=DATA, eval_data=DATA)
        if fresh:
            export(run)
            run.finish()
            run.settle()


def resumed(run: RunFolder) -> Callable[[], None]:
    """Claims the folder to go on; its checkpoints and journals stay as they are."""

    def read() -> None:
        paths = [*run.path.glob("checkpoint-*"), *run.path.glob("*.jsonl")]
        before = {path: snapshot(path) for path in paths}
        try:
            claim(run, fresh=False)
        finally:
            for path, then in before.items():
                if snapshot(path) != then:
                    raise Broken(f"{path.name} is not as it was before the run was resumed")

    return read


def history_of(log: JsonlLog) -> Reader:
    """Reads a journal and what its evaluations say."""

    def read() -> str | None:
        history = EvaluationHistory.of(log.read())
        history.then(STEPS, 1.0)
        _ = history.best, history.since_best
        return history.early_stop_text(STEPS, STEPS)

    return read
