"""What `bench.chaos` holds every run to: each function returns what is broken, in words, and nothing where all is well."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from bench.processes import started_with, wait_for
from bench.small_run import difference

SHOWN = 110
"""Characters of a message in the table."""
LEFT = 15.0
"""Seconds in which the processes of a command are gone after it."""


def tracebacks(said: str) -> list[str]:
    """Python's words for an error of ours, on the terminal; the worker's log may have them."""
    lines = [
        line
        for line in said.splitlines()
        if re.match(r"\w[\w.]*(Error|Exception|Interrupt)\b", line)
    ]
    if "Traceback (most recent call last)" in said or "Exception ignored in" in said:
        return [f"a raw traceback ({(lines or ['?'])[-1][:SHOWN]})"]
    return []


def exits(code: int, said: str, wanted: Iterable[int]) -> list[str]:
    """An exit code that is not wanted, or 1 without a line that says why."""
    wanted = sorted(wanted)
    if code not in wanted:
        return [f"exit {code} instead of {' or '.join(map(str, wanted))}"]
    if code == 1 and not any(line.startswith("chatlm: ") for line in said.splitlines()):
        return ["exit 1 without a line that says why"]
    return []


def says(said: str, pattern: str) -> list[str]:
    found = re.search(pattern, said)
    return [] if found else [f"does not say {pattern!r}"]


def survivors(mark: str) -> list[str]:
    """Processes of the command that outlive it."""
    wait_for(lambda: not started_with(mark), seconds=LEFT, pause=0.1)
    left = started_with(mark)
    return [f"{len(left)} processes are left"] if left else []


def leftovers(output: Path, cache: Path) -> list[str]:
    """Hidden names in the folder of a run that ended well, and half-made token stores."""
    hidden = sorted(path.name for path in output.glob(".*"))
    found = hidden + sorted(path.name for path in cache.glob(".partial-*"))
    return [f"left: {', '.join(found)}"] if found else []


def differs(whole: Path, output: Path) -> list[str]:
    """How a finished run is not the undisturbed one."""
    missing = [
        name for name in ("config.json", "model.safetensors", "metrics.jsonl", "evaluations.jsonl")
        if not (output / name).is_file()
    ]  # fmt: skip
    return [f"{', '.join(missing)} missing"] if missing else difference(whole, output).faults()


def lost(steps: int, newest: int, before: int, most: int) -> list[str]:
    """Steps that were lost beyond `most`, and a checkpoint that is there no more."""
    found = []
    if newest < before:
        found.append(f"checkpoint-{before} is gone, the newest is of step {newest}")
    if steps - newest > most:
        found.append(f"{steps - newest} steps are lost, not {most} at most")
    return found


def content(folder: Path) -> dict[str, str]:
    """What a folder holds by name: a link's target, a file's checksum; nothing where there is no folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder"
    return found


def touched(before: dict[str, str], after: dict[str, str], what: str) -> list[str]:
    """Names that came, went or changed."""
    names = sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )
    return [f"{what} changed: {', '.join(names[:3])}"] if names else []


def line_of(said: str, *places: Path) -> str:
    """The line that says how the command ended: chatlm's own, else the last notice, else the last one."""
    for place in places:
        said = said.replace(f"{place}/", "")
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", said)  # a screen's colours and places
    said = re.sub(r"logs/[\w-]+\.log", "LOG", said)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("chatlm: ")]
    notes = [line.removeprefix("note").strip() for line in lines if line.startswith("note ")]
    told = [line for line in notes if re.search(r"stopping|damaged|resum|back|log|anew", line)]
    found = own[-1:] or told[-1:] or lines[-1:] or ["nothing"]
    return found[0][:SHOWN]
