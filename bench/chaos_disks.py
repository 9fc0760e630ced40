"""Disks that are full at the worst moment, and folders that vanish in mid-run.

A full disk is a limit on the size of files (RLIMIT_FSIZE), set on the running process while it stands still:
the next bytes are refused, as a full disk refuses them. The limit is gone with the process.
"""

import os
import resource
import shutil
from pathlib import Path

from bench.chaos_case import Act, Case, Strike, chain
from bench.chaos_moments import WHOLE
from bench.chaos_place import EVERY, Command, Place

KIB = 1024
REMOVED = "the run, which was removed"
RESUMES = "resumes|resume from|nothing was saved"


def limit(pids: list[int], most: int) -> None:
    for pid in pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))


def full(most: int) -> Act:
    """No file of the workers grows beyond that."""
    return lambda command: limit(command.workers(), most)


def full_metrics(command: Command) -> None:
    """The next line of metrics is cut off in its middle."""
    size = (command.output / "metrics.jsonl").stat().st_size
    limit(command.workers(), size + 100)


def full_log(command: Command) -> None:
    """The command's own files: its text log."""
    limit([command.supervisor], 1)


def without(name: str) -> Act:
    """Removes a folder of the case's place."""
    return lambda command: shutil.rmtree(command.place.folder / name)


def renamed(command: Command) -> None:
    command.output.rename(command.place.folder / "elsewhere")


def replaced(command: Command) -> None:
    renamed(command)
    command.output.write_text("another file\n")


def put_back(place: Place) -> None:
    if place.output.is_file():
        assert place.output.read_text() == "another file\n"
    if not place.output.is_dir():
        place.output.unlink(missing_ok=True)
        (place.folder / "elsewhere").rename(place.output)


def read_only(command: Command) -> None:
    command.output.chmod(0o500)


def writable(place: Place) -> None:
    place.output.chmod(0o700)


def may_write_anywhere() -> str | None:
    return "the superuser may write anywhere" if os.geteuid() == 0 else None


def to_a_full_device(place: Place) -> Command:
    with Path("/dev/full").open("w") as stdout:
        return place.train(stdout=stdout)


def disk(done: str, phase: str, act: Act, **owed: object) -> Case:
    values: dict[str, object] = {"codes": (1,), "most_lost": EVERY, "done": done, "phase": phase}
    strike = Strike(**{**values, "act": act, **owed})  # type: ignore[arg-type]
    return Case(
        name="disks", run=chain, seconds=15, tokens=phase != "tokenising", strikes=(strike,)
    )


CASES = (
    disk("the disk is full for a checkpoint", "saving", full(1000 * KIB), says=RESUMES),
    disk("the disk is full for the model", "exporting", full(100 * KIB), says=RESUMES),
    disk("the disk is full for the metrics", "stepping", full_metrics, says="metrics.jsonl"),
    disk("the disk is full for the token store", "tokenising", full(KIB), says="token cache"),
    disk("the disk is full for the log", "stepping", full_log, codes=(0,)),
    disk(
        "stdout is /dev/full", WHOLE, lambda command: None, start=to_a_full_device, codes=(0, 1),
    ),
    disk(
        "the output folder is removed", "stepping", without("run"), says="removed", loses=REMOVED,
    ),
    disk("the output folder is removed", "saving", without("run"), says="removed", loses=REMOVED),
    disk(
        "the output folder is renamed, and put back", "stepping", renamed, after=put_back,
        says="moved",
    ),
    disk(
        "a file takes the output folder's place", "stepping", replaced, after=put_back,
    ),
    disk(
        "the output folder becomes read-only", "stepping", read_only, after=writable,
        why_not=may_write_anywhere,
    ),
    disk("the cache is removed", "stepping", without("cache"), codes=(0, 1)),
    disk("the cache is removed", "tokenising", without("cache"), codes=(0, 1)),
    disk("the folder of logs is removed", "stepping", without("logs"), codes=(0,)),
    disk("TMPDIR is removed", "stepping", without("tmp"), codes=(0,)),
)  # fmt: skip
