"""What a run wrote in its folder: found by name, moved, and removed only where the content is known to be a run's.

A folder may come from someone else or be damaged, so what its files say is only believed within limits: a name
leads nowhere out of the folder, links are moved or unlinked and never followed, and what no run of ours wrote stays.
"""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from autotune import files
from autotune.errors import OutputError
from trainer.artifacts.manifest import NAME, Damaged, Manifest, is_as_written, read_manifest
from trainer.artifacts.run_record import read_record

RECORD = "run.json"
LOGS = ("run.toml", "profile.toml", "metrics.jsonl", "evaluations.jsonl", "loss.png", "loss.svg")
"""Ours by their names; a user may edit the first two."""
TRACKING = "tracking"
CHECKPOINT = re.compile(r"checkpoint-(\d{1,18})", re.ASCII)
BEGUN = re.compile(
    rf"\.(checkpoint-\d+|model|({'|'.join(map(re.escape, (RECORD, *LOGS)))})\.\d+\.tmp)", re.ASCII
)
"""What a killed process had begun: no name of anything else."""
DAMAGED = re.compile(r"damaged-checkpoint-\d+(-\d+)?", re.ASCII)
REMOVING = ".removing-"
MARK = "config.json"
"""A folder with it is a model: the last file to come and the first to go."""
KEPT = "kept"
"""Where others' files that were found among ours stay."""


def model_of(folder: Path) -> Manifest:
    """The files of the folder's final model; none where the record is damaged or missing."""
    try:
        record = read_record(folder)
    except OutputError:
        return {}
    return {} if record is None else record.model


def names_of(folder: Path) -> list[str]:
    """Names in the folder that belong to its run, `config.json` first, the record last."""
    of_model = {PurePosixPath(name).parts[0] for name in _as_written(folder, model_of(folder))}
    found = [
        path.name
        for path in folder.iterdir()
        if path.name in (*LOGS, TRACKING, *of_model)
        or CHECKPOINT.fullmatch(path.name)
        or DAMAGED.fullmatch(path.name)
    ]
    record = [RECORD] if os.path.lexists(folder / RECORD) else []
    return [*sorted(found, key=lambda name: (name != MARK, name)), *record]


def move(names: Iterable[str], source: Path, target: Path) -> None:
    """Moves the entries; what is in their place is set aside as `kept`."""
    for name in names:
        if os.path.lexists(target / name):
            (target / name).rename(files.free_name(target / f"{KEPT}-{name}"))
        (source / name).rename(target / name)
    files.sync(target)
    files.sync(source)


def place(source: Path, folder: Path, before: Manifest) -> None:
    """Moves a model's files into the folder, `config.json` last, over those that `before` knows; others are set aside."""
    names = sorted((path.name for path in source.iterdir()), key=lambda n: (n == MARK, n))
    _remove_written(folder, {name: s for name, s in before.items() if name == MARK})
    for name in names:
        if name == MARK:
            files.sync(folder)
        _remove_written(folder, _of(name, before))
        move([name], source, folder)


def discard(folder: Path) -> None:
    """Removes what a run wrote, the record last; what has another content stays.

    Without a readable record only checkpoints are known to be a run's.
    """
    finish_removals(folder)
    for path in list(folder.iterdir()):
        if CHECKPOINT.fullmatch(path.name) or DAMAGED.fullmatch(path.name):
            remove_checkpoint(path)
    try:
        record = read_record(folder)
    except OutputError:
        return
    if record is not None:
        _remove_written(folder, record.model)
        files.remove(folder / TRACKING)
        for name in (*LOGS, RECORD):
            path = folder / name
            if path.is_symlink() or not path.is_dir():
                path.unlink(missing_ok=True)


def remove_checkpoint(path: Path) -> None:
    """Removes a checkpoint, or the link to one; files in it that are not a checkpoint's stay, as `kept-checkpoint-N`.

    It is renamed first, so that nobody sees half of one.
    """
    if path.is_symlink():
        path.unlink()
        return
    hidden = path.with_name(REMOVING + path.name)
    if os.path.lexists(hidden):
        _empty(hidden)
    path.rename(hidden)
    _empty(hidden)


def finish_removals(folder: Path) -> None:
    """Removes what a killed process had begun to write or to remove."""
    for path in list(folder.iterdir()):
        if path.name.startswith(REMOVING):
            _empty(path)
        elif BEGUN.fullmatch(path.name):
            files.remove(path)


def _empty(hidden: Path) -> None:
    """Removes the files that the checkpoint's manifest names, the manifest last, and the folder."""
    if hidden.is_symlink():
        hidden.unlink()
        return
    with suppress(Damaged):  # no checkpoint of ours, or one that cannot tell its files
        written = [name for name in (*read_manifest(hidden), NAME) if _is_plain(hidden, name)]
        for name in written:
            (hidden / name).unlink(missing_ok=True)
            _remove_empty(hidden, [name])
    try:
        hidden.rmdir()
    except OSError:
        name = f"{KEPT}-{hidden.name.removeprefix(REMOVING)}"
        hidden.rename(files.free_name(hidden.with_name(name)))


def _of(name: str, model: Manifest) -> Manifest:
    """The files of the model that are this entry of its folder, or lie in it."""
    return {file: known for file, known in model.items() if PurePosixPath(file).parts[0] == name}


def _remove_written(folder: Path, manifest: Manifest) -> None:
    written = _as_written(folder, manifest)
    for name in written:
        (folder / name).unlink()
    _remove_empty(folder, written)


def _as_written(folder: Path, manifest: Manifest) -> list[str]:
    """Names of the files that are as they were written."""
    return [
        name
        for name, known in manifest.items()
        if _is_plain(folder, name) and is_as_written(folder / name, known)
    ]


def _is_plain(folder: Path, name: str) -> bool:
    """Whether the name leads through real folders of this folder."""
    above = list(PurePosixPath(name).parents)[:-1]
    return not any((folder / parent).is_symlink() for parent in above)


def _remove_empty(folder: Path, names: Iterable[str]) -> None:
    """Removes the folders of those names that are empty now, the deepest first."""
    above = {parent for name in names for parent in list(PurePosixPath(name).parents)[:-1]}
    for parent in sorted(above, key=lambda parent: -len(parent.parts)):
        with suppress(OSError):
            (folder / parent).rmdir()
