"""From the names that a user gives to files: a file, a folder of them, a pattern, a hub data set."""

import glob
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from autotune.errors import DataError, first_line, shortened, shown
from autotune.files import is_inside
from trainer.reading.faults import ROW_BYTES, kind
from trainer.reading.json_cursor import DuplicateKey, TooLarge, parse
from trainer.reading.kinds import ADVICE, PIPE
from trainer.reading.layouts import listed
from trainer.reading.streams import KINDS, SUFFIXES

ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What `datasets` writes beside data."""
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval", "evaluation"), "validation"),
}
SAVE_AGAIN = "save the data set again"
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
    if (about := folder / "dataset_dict.json").is_file():
        splits = _list(_read(about).get("splits", []), str, about)
        if "train" not in splits:
            what = f"{folder} holds the splits {listed(splits)}, and none is train"
            one = shortened(splits[0]) if splits else "test"
            raise DataError(what, f"give one of them, like {folder / one}")
        return _in_folder(folder / "train")
    if (about := folder / "state.json").is_file():
        state = _read(about)
        if state.get("_indices_data_files"):
            raise DataError(f"{folder} is a view of other rows", "save it anew with `datasets`")
        if "_data_files" in state:
            names = [file.get("filename") for file in _list(state["_data_files"], dict, about)]
            outside = [name for name in _list(names, str, about) if not is_inside(name)]
            if outside:
                what = f"{about} names {shown(outside[0])}, which is outside its folder"
                raise DataError(what, "save the data set again")
            return [str(folder / name) for name in names]
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
    parts = re.split(r"(\d+)", path)
    return [int(part) if n % 2 else part for n, part in enumerate(parts)]


def _read(path: Path) -> dict[str, Any]:
    """The object in a file that `datasets` wrote; raises DataError."""
    try:
        with path.open("rb") as stream:
            found = parse(stream.read(ROW_BYTES).decode())
    except (ValueError, RecursionError, DuplicateKey, TooLarge) as error:
        raise DataError(f"{path} is damaged: {first_line(error)}", SAVE_AGAIN) from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is damaged: it holds {kind(found)}", SAVE_AGAIN)
    return found


def _list(value: Any, kind_of_item: type, path: Path) -> list[Any]:
    """The value, where it is a list of such items."""
    if isinstance(value, list) and all(isinstance(item, kind_of_item) for item in value):
        return value
    raise DataError(f"{path} is damaged: it names no files", SAVE_AGAIN)


def is_hub_id(name: str) -> bool:
    """Whether the name may be `owner/name`, and is not a file's."""
    suffixes = (*KINDS, *SUFFIXES)
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None and not name.endswith(suffixes)


def cached_files(name: str) -> list[str]:
    """The files of the data set's split `train` in the cache of `datasets`; downloads it if need be."""
    try:
        import datasets
    except ImportError as error:
        what = f"data file {name} is not there"
        raise DataError(what, "for a data set of the hub: pip install datasets") from error
    try:
        found = datasets.load_dataset(name, split="train")
    except Exception as error:  # of the network, the hub, or the data set's files
        what = f"{name} is not a file, and `datasets` does not give it: {first_line(error)}"
        raise DataError(what, "check the name and the network, or give files") from error
    return [file["filename"] for file in found.cache_files]
