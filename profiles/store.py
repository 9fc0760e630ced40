"""Finds a profile by path, then in `./profiles`, then among the presets; writes it atomically."""

import difflib
import os
from contextlib import suppress
from importlib import resources
from pathlib import Path

import tomli_w

from autotune.errors import OutputError, ProfileError, named, shown
from autotune.files import check_writable, write_text
from profiles.document import parse_toml, read_file
from profiles.schema import Profile, parse

PRESETS = resources.files("profiles") / "presets"
FOLDER = Path("profiles")
"""Where `autotune` writes and `train` looks, in the user's current folder."""
LONGEST = 200
"""Bytes of a profile's name; its file's name, and that of a half-written one, are longer."""
MOST_LISTED = 20
"""Names in an error."""


def load(name_or_path: str) -> Profile:
    """The profile of that path or name.

    Raises:
        ProfileError: there is none (the error gives the nearest names), or it is malformed.
    """
    data, source, folder = _read(name_or_path)
    try:
        document = parse_toml(data)
    except ValueError as error:
        raise ProfileError(f"{source} {error}", "fix it, or tune again") from error
    profile = parse(document, source)
    return profile.model_copy(update={"run": profile.run.found_from(folder)})


def save(profile: Profile, path: Path) -> None:
    """Writes the profile atomically: the file is the old one or the whole new one.

    Raises:
        OutputError: no permission or no space.
    """
    document = profile.model_dump(mode="json", by_alias=True, exclude_none=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, tomli_w.dumps(document))
    except OSError as error:
        raise OutputError(
            f"cannot write the profile {path}: {error.strerror}",
            "free some space, or run in a folder that you can write to",
        ) from error


def check_place(path: Path) -> None:
    """Raises OutputError if `save` could not write there. Checked before the search."""
    check_writable(path.parent, "run in a folder that you can write to")
    if path.is_dir():
        raise OutputError(
            f"cannot write the profile {path}: a folder is there", "use another --name"
        )


def free_path(path: Path) -> Path:
    """The path for an interrupted tuning: beside a finished profile, not over it."""
    with suppress(ProfileError):
        if not load(str(path)).interrupted:
            return path.with_name(f"{path.stem}-interrupted.toml")
    return path


def names() -> list[str]:
    """Every profile that can be named, whole or not: the user's own first, then the presets."""
    own = sorted(path.stem for path in FOLDER.glob("*.toml"))
    return own + [name for name in _presets() if name not in own]


def check_folder() -> None:
    """Raises ProfileError if `names` cannot see the user's own profiles."""
    try:
        next(FOLDER.iterdir(), None)
    except FileNotFoundError:
        pass  # no tuning has written one
    except OSError as error:
        raise ProfileError(f"cannot read the folder {FOLDER}: {error.strerror}") from error


def check_name(name: str) -> str:
    """The name, if a file can have it.

    Raises:
        ProfileError: it is empty or long, has a folder in it, or a character that no screen shows.
    """
    is_word = name == Path(name).name and name.isprintable() and not name.startswith(".")
    if not name or not is_word or len(os.fsencode(name)) > LONGEST:
        raise ProfileError(f"{shown(name)} cannot name a profile", "use a plain word like tuned")
    return name


def _presets() -> list[str]:
    return sorted(file.name.removesuffix(".toml") for file in PRESETS.iterdir())


def _read(name_or_path: str) -> tuple[bytes, str, Path]:
    """The file, a name for it in messages, and its folder."""
    path = Path(name_or_path)
    is_name = path.name == name_or_path
    for candidate in (path, FOLDER / f"{name_or_path}.toml") if is_name else (path,):
        try:
            if _is_profile(candidate, is_name):
                return read_file(candidate), named(candidate), candidate.parent
        except OSError as error:
            what = f"cannot read the profile {named(candidate)}: {error.strerror}"
            raise ProfileError(what) from error
    if name_or_path in _presets():
        text = (PRESETS / f"{name_or_path}.toml").read_bytes()
        return text, f"preset {name_or_path}", Path()
    raise ProfileError(f"no profile {shown(name_or_path)}", _hint(path.stem))


def _is_profile(path: Path, is_name: bool) -> bool:
    """Whether something is there to be read; a folder with the name of a profile is none.

    Raises:
        OSError: no file can have that name, or it may not be looked for.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except ValueError:  # a NUL character: no file has such a name
        return False
    if is_name and path.suffix != ".toml":
        return path.exists() and not path.is_dir()
    return True


def _hint(stem: str) -> str:
    known = names()
    if near := difflib.get_close_matches(stem, known, n=3):
        return f"did you mean {' or '.join(map(named, near))}?"
    listed = ", ".join(map(named, known[-MOST_LISTED:]))
    return f"there are {listed}, and `chatlm autotune` makes one"
