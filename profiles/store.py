"""Finds a profile by path, then in `./profiles`, then among the presets; writes it atomically."""

import difflib
import tomllib
from contextlib import suppress
from importlib import resources
from pathlib import Path

import tomli_w

from autotune.errors import OutputError, ProfileError
from autotune.files import check_writable, write_text
from profiles.schema import Profile, parse

PRESETS = resources.files("profiles") / "presets"
FOLDER = Path("profiles")
"""Where `autotune` writes and `train` looks, in the user's current folder."""


def load(name_or_path: str) -> Profile:
    """The profile of that path or name.

    Raises:
        ProfileError: there is none (the error gives the nearest names), or it is malformed.
    """
    data, source = _read(name_or_path)
    try:
        document = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"{source} is not TOML: {error}", "fix it, or tune again") from error
    profile = parse(document, source)
    return profile.model_copy(update={"run": profile.run.found_from(Path(source).parent)})


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
    """Every profile that can be named: the user's own first, then the presets."""
    own = sorted(path.stem for path in FOLDER.glob("*.toml"))
    return own + [name for name in _presets() if name not in own]


def check_name(name: str) -> str:
    """The name, if a file can have it.

    Raises:
        ProfileError: it is empty or has a folder in it.
    """
    if not name or name != Path(name).name or name.startswith("."):
        raise ProfileError(f"{name!r} cannot name a profile", "use a plain word like tuned")
    return name


def _presets() -> list[str]:
    return sorted(file.name.removesuffix(".toml") for file in PRESETS.iterdir())


def _read(name_or_path: str) -> tuple[bytes, str]:
    """The file, and a name for it in messages."""
    path = Path(name_or_path)
    is_name = path.name == name_or_path
    for candidate in (path, FOLDER / f"{name_or_path}.toml") if is_name else (path,):
        try:
            if candidate.is_file():
                return candidate.read_bytes(), str(candidate)
        except OSError as error:
            raise ProfileError(f"cannot read the profile {candidate}: {error.strerror}") from error
    if name_or_path in _presets():
        return (PRESETS / f"{name_or_path}.toml").read_bytes(), f"preset {name_or_path}"
    near = difflib.get_close_matches(path.stem, names(), n=3)
    hint = f"there are {', '.join(names())}, and `chatlm autotune` makes one"
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    raise ProfileError(f"no profile {name_or_path!r}", hint)
