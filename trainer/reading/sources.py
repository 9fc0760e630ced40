"""From the names that a user gives to files: a file, a folder of them, a pattern, a hub data set."""

import glob
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from autotune.errors import DataError
from trainer.reading.hub import cached_files, is_hub_id
from trainer.reading.kinds import ADVICE, PIPE
from trainer.reading.streams import KINDS, SUFFIXES

ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What `datasets` writes beside data."""
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval", "evaluation"), "validation"),
}
WORDS = re.compile(r"[\W_\d]+")
"""Between the words of a file's name: `test1.jsonl` is of the split `test`."""


def find_files(names: Sequence[str]) -> tuple[str, ...]:
    """The files of those names, in order.

    Raises:
        DataError: a name finds nothing, or a folder holds more than one kind or split.
    """
    return tuple(file for name in names for file in _found(name))


def _found(name: str) -> list[str]:
    try:
        if Path(name).is_file():
            return [name]
        if Path(name).is_dir():
            return _in_folder(Path(name))
        if "://" in name:
            raise DataError(f"{name} is an address, not a file", "download it, and give the file")
        if glob.has_magic(name):
            found = glob.iglob(name, recursive=True)  # noqa: PTH207  Path.glob takes no absolute one
            files = [path for path in found if Path(path).is_file()]
            if not files:
                raise DataError(f"no file matches {name}", "check it with ls, and quote it")
            return sorted(files, key=_natural)
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror}", ADVICE) from error
    if Path(name).exists():
        raise DataError(f"{name} is a pipe or a device", PIPE)
    if is_hub_id(name) and not Path(name).parent.is_dir():
        return cached_files(name)
    raise DataError(f"data file {name} is not there", ADVICE)


def _in_folder(folder: Path) -> list[str]:
    if (folder / "dataset_dict.json").is_file():
        splits = _read(folder / "dataset_dict.json").get("splits", [])
        if "train" not in splits:
            what = f"{folder} holds the splits {', '.join(splits)}, and none is train"
            raise DataError(what, f"give one of them, like {folder / (splits or ['test'])[0]}")
        return _in_folder(folder / "train")
    if (folder / "state.json").is_file():
        state = _read(folder / "state.json")
        if state.get("_indices_data_files"):
            raise DataError(f"{folder} is a view of other rows", "save it anew with `datasets`")
        if "_data_files" in state:
            return [str(folder / file["filename"]) for file in state["_data_files"]]
    return _shards(folder)


def _shards(folder: Path) -> list[str]:
    """The data files in the folder, in the order of their numbers."""
    found = (path for path in folder.rglob("*") if _is_data(path.relative_to(folder)))
    files = [path for path in found if path.is_file()]
    if not files:
        what = f"folder {folder} has no data files (*{', *'.join(KINDS)}, also .gz and .zst)"
        raise DataError(what, "name the files themselves")
    of_kind = (f"{glob.escape(str(path.parent))}/*{_kind(path)}" for path in files)
    _check_one(folder, "kinds or folders", of_kind)
    if {_split(path) for path in files} - {"train", ""}:
        _check_one(folder, "splits", map(_of_split, files))
    return sorted(map(str, files), key=_natural)


def _check_one(folder: Path, several: str, patterns: Iterable[str]) -> None:
    """Raises DataError where the patterns, one for each file, differ."""
    found = Counter(patterns)
    if len(found) > 1:
        counts = ", ".join(f"{pattern} ({count})" for pattern, count in sorted(found.items()))
        most = max(found, key=lambda pattern: ("train" in pattern, found[pattern]))
        raise DataError(
            f"folder {folder} holds several {several}: {counts}",
            f"choose, like {shlex.quote(most)}",
        )


def _is_data(path: Path) -> bool:
    return (
        _kind(path) != ""
        and path.name not in ABOUT
        and not any(part.startswith((".", "_")) for part in path.parts)
    )


def _kind(path: Path) -> str:
    """The suffix of a data file, with that of its compression; empty for another file."""
    packed = path.suffix.lower() if path.suffix.lower() in SUFFIXES else ""
    suffix = Path(path.name.lower().removesuffix(packed)).suffix
    return suffix + packed if suffix in KINDS else ""


def _split(path: Path) -> str:
    """The split that the file's name says, empty if it says none."""
    words = WORDS.split(path.name.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), "")


def _of_split(path: Path) -> str:
    said = next((word for word in WORDS.split(path.name) if word.lower() in SPLITS), "")
    parent = glob.escape(str(path.parent))
    return f"{parent}/*{said}*{_kind(path)}" if said else f"{parent}/{glob.escape(path.name)}"


def _natural(path: str) -> list[Any]:
    """Orders `part-2` before `part-10`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}", "save the data set again") from error
    return found
