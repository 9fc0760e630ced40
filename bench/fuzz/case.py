"""One case: what is read, where, and whether that went as promised.

A reader returns, or raises a ChatlmError whose message is safe for a terminal and not too long. It changes
nothing that is not its own, and leaves no temporary file and no process.
"""

import os
import shutil
import stat
import traceback
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from autotune.errors import ChatlmError

ROOT = Path(__file__).parents[2]
OURS = {"autotune", "chatlm", "cli.py", "dashboard", "profiles", "trainer"}
LONGEST = 2000
"""Characters of a message."""
READ = "read"
JOINERS = "\u200c\u200d"
"""Within emoji and Persian words."""
UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
OLD = 1_000_000_000
"""The time of every file before it is read: a write shows, however soon it comes."""

Reader = Callable[[], object]
"""Reads; a text that it returns is one that people would see."""


class Broken(Exception):
    """A reader returned something wrong; the message says what."""


@dataclass(frozen=True, slots=True)
class Place:
    """The folder of one case."""

    root: Path

    @property
    def work(self) -> Path:
        """The current folder of the reader, and what it reads."""
        return self.root / "work"

    @property
    def outside(self) -> Path:
        """Beside it: files that nobody may touch."""
        return self.root / "outside"

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"

    def begin(self) -> None:
        """Makes it anew and enters it."""
        remove(self.root)
        for folder in (self.work, self.outside / "folder", self.temporary):
            folder.mkdir(parents=True)
        (self.outside / "canary.txt").write_text("canary\n")
        (self.outside / "folder" / "checkpoint-4").write_bytes(b"canary")
        os.chdir(self.work)


@dataclass(frozen=True, slots=True)
class Case:
    """What is there, and how it is read."""

    readers: Sequence[Reader]
    """In order; an error of one does not keep the next from reading. The first is the main one."""
    kept: Sequence[Path]
    """Files and folders that stay as they are; those of `Place.outside` always do."""


Make = Callable[[Place, Random], Case]
"""Makes a case in its place; every choice is the generator's."""
Prepare = Callable[[Path], Make]
"""Makes the originals in a folder, once for many cases."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A promise that was broken."""

    cause: str
    """The same for the same fault: the kind of error, and the line of ours."""
    says: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case."""

    answer: str
    """Of the first reader: `read`, or the class of its error."""
    faults: tuple[Fault, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def judge(case: Case, place: Place) -> Outcome:
    """Runs the readers and looks at what they leave."""
    kept = (*case.kept, place.outside)
    for path in kept:
        _age(path)
    before, names = {path: snapshot(path) for path in kept}, _temporary(place)
    answers: list[str] = []
    faults: list[Fault] = []
    for reader in case.readers:
        try:
            answers.append(READ)
            if isinstance(said := reader(), str):
                faults += _unsafe(said.replace("\t", ""), "printed text", longest=None)
        except ChatlmError as error:
            answers[-1] = type(error).__name__
            faults += _unsafe(str(error), f"message of {_place_of(error)}")
        except Exception as error:  # noqa: BLE001  the very thing that is looked for
            answers[-1] = type(error).__name__
            faults.append(_fault_of(error))
    for path in kept:
        faults += _changed(place, before[path], snapshot(path))
    left = sorted(_temporary(place) - names)
    faults += [Fault("temporary file is left", escaped(name)) for name in left]
    faults += _process_left()
    return Outcome(answers[0], tuple({fault.cause: fault for fault in reversed(faults)}.values()))


def _unsafe(text: str, what: str, longest: int | None = LONGEST) -> Iterator[Fault]:
    bad = sorted({c for c in text if unicodedata.category(c) in UNSAFE} - {"\n", *JOINERS})
    if bad:
        found = " ".join(f"U+{ord(character):04X}" for character in bad[:5])
        yield Fault(f"control character in {what}", f"{found} in {escaped(text)}")
    if longest is not None and len(text) > longest:
        yield Fault(f"long {what}", f"{len(text):,} characters: {escaped(text)}")


def _fault_of(error: Exception) -> Fault:
    frames = traceback.format_exception(type(error), error, error.__traceback__, limit=-12)
    what = type(error).__name__
    return Fault(
        f"{what} at {_place_of(error)}", escaped(str(error)), escaped("".join(frames), 6000)
    )


def _place_of(error: BaseException) -> str:
    """The innermost line of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        file = Path(frame.filename)
        if file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in OURS:
            return f"{file.relative_to(ROOT)}:{frame.lineno} {frame.name}"
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}"


def escaped(text: str, longest: int = 300) -> str:
    """The beginning of the text, as one can read it; line breaks stay."""
    return text[:longest].encode("unicode_escape").decode().replace("\\n", "\n")


def snapshot(path: Path) -> dict[str, tuple[int, ...]]:
    """Kind, number, size and time of every file below the path, links not followed; a folder's kind and number."""
    found = {}
    for file in below(path):
        try:
            about = os.lstat(file)
        except OSError:  # it is not there, or what should be its folder is none
            continue
        written = () if stat.S_ISDIR(about.st_mode) else (about.st_size, about.st_mtime_ns)
        found[file] = (about.st_mode, about.st_ino, *written)
    return found


def below(path: Path) -> Iterator[str]:
    """The path, and every file and folder below it."""
    yield os.fspath(path)
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            yield f"{folder}/{name}"


def _age(path: Path) -> None:
    for file in below(path):
        if os.path.lexists(file):
            os.utime(file, (OLD, OLD), follow_symlinks=False)


def _changed(place: Place, before: dict[str, Any], after: dict[str, Any]) -> Iterator[Fault]:
    for file in sorted(before.keys() | after.keys()):
        if before.get(file) != after.get(file):
            what = "is new" if file not in before else "is gone" if file not in after else "changed"
            yield Fault(
                f"a file that is not the reader's {what}",
                escaped(os.path.relpath(file, place.root)),
            )
            return


def _temporary(place: Place) -> set[str]:
    names = (os.path.relpath(path, place.root) for path in below(place.root))
    return {name for name in names if name.endswith(".tmp") or name.startswith("tmp/")}


def _process_left() -> Iterator[Fault]:
    try:
        pid, _ = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return
    yield Fault("process is left", f"{'an ended one' if pid else 'one that runs'}")


def remove(path: Path) -> None:
    """Removes the file or the folder, whatever its permissions; nothing where there is none."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    path.chmod(0o700)
    for folder, folders, _ in os.walk(path):
        for name in folders:
            if not (inner := Path(folder, name)).is_symlink():
                inner.chmod(0o700)
    shutil.rmtree(path)


def summary(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many cases had each answer."""
    return dict(Counter(outcome.answer for outcome in outcomes).most_common())
