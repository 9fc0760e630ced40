"""Run folders as runs leave them, as far as the folder's own code looks."""

import os
from pathlib import Path
from typing import Any

from autotune import files
from trainer.artifacts.manifest import write_manifest
from trainer.artifacts.run_folder import RunFolder
from trainer.config.settings import TrainSettings, WorkloadSettings

RUN = TrainSettings(
    workload=WorkloadSettings(data=("a.jsonl", "b.jsonl")),
    profile="small",
    micro_batch=4,
    effective_batch=16,
).run_key()
OTHER: dict[str, Any] = {**RUN, "effective_batch": 32}


def contents(path: Path) -> dict[str, bytes | str]:
    """Every file's bytes and every link's target, by its path."""
    found = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    links = (Path(folder, name) for folder, names, _ in os.walk(path) for name in names)
    return {
        **{str(file): file.read_bytes() for file in found if file.is_file()},
        **{str(link): str(link.readlink()) for link in links if link.is_symlink()},
    }


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def trained(folder: RunFolder, *, finished: bool = False) -> RunFolder:
    """The folder after some steps of `RUN`, or all."""
    folder.claim(RUN, fresh=False)
    folder.metrics.path.write_text('{"step": 1}\n')
    save(folder, 1)
    if finished:
        export(folder, {"config.json": "{}", "model.safetensors": "weights"})
        folder.finish()
    return folder


def save(folder: RunFolder, step: int) -> Path:
    """A checkpoint."""
    checkpoint = folder.path / f"checkpoint-{step}"
    with files.appearing(checkpoint) as hidden:
        (hidden / "code").mkdir()
        (hidden / "state.json").write_text("{}")
        (hidden / "code" / "model.py").write_text("")
        write_manifest(hidden)
    return checkpoint


def export(folder: RunFolder, model: dict[str, str]) -> None:
    """The final model's files, by name."""
    hidden = folder.path / ".model"
    for name, content in model.items():
        (hidden / name).parent.mkdir(parents=True, exist_ok=True)
        (hidden / name).write_text(content)
    folder.place_model(hidden)
    hidden.rmdir()


def replaced(folder: RunFolder) -> str | None:
    """The folder after `--fresh` and the new run's first checkpoint; what is told."""
    folder.claim(OTHER, fresh=True)
    save(folder, 2)
    return folder.settle()
