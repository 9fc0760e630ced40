"""Damaged files of a run and of its token store: the run ends as it would, or is refused in words, never silently another.

    python -m bench.chaos_damage GROUND FOLDER TARGET…

A hundred and more damages are tried by the trainer's own `train` in one process, which `bench.chaos` starts:
a command for each would take ten seconds. Every file is emptied, cut off and removed, and has bits flipped.
"""

import functools
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from autotune.errors import ChatlmError
from bench.chaos_case import Case, Row, Strike, row
from bench.chaos_judge import SHOWN, differs
from bench.chaos_moments import BEFORE
from bench.chaos_place import Place
from bench.small_run import ROOT

if TYPE_CHECKING:
    from trainer.config.settings import TrainSettings

Owed = Literal["ended", "refused", "ended or refused"]
Damage = tuple[str, Callable[[Path], object]]
FLIPS = 2
DEADLINE = 240
"""Seconds of one such process."""
DONE = 5
"""Steps of the run that is damaged; it has checkpoints of two steps."""
NEWEST, ALL = "newest checkpoint", "every checkpoint"
RECORD, JOURNALS, STORE = "run.json", "journals", "token store"


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is damaged, in words, and what the next start then owes."""

    name: str
    what: str
    lost: str
    owed: Owed
    files: Callable[[Path, Path], list[list[Path]]]
    """From the run's folder and the cache: groups of files that are damaged alike."""


def checkpoint_files(run: Path, *, newest_alone: bool) -> list[list[Path]]:
    from trainer.artifacts.run_folder import RunFolder

    found = RunFolder(run).checkpoints()
    chosen = found[-1:] if newest_alone else found
    names = sorted(path.name for path in found[-1].iterdir())
    return [[checkpoint / name for checkpoint in chosen] for name in names]


def store_files(cache: Path) -> list[list[Path]]:
    stores = [path for path in cache.iterdir() if path.is_dir() and path.name[0] != "."]
    return [[store / name.name] for store in stores for name in sorted(store.iterdir())]


TARGETS = {
    target.name: target
    for target in (
        Target(
            name=NEWEST, what="a file of the newest checkpoint is damaged", owed="ended",
            lost="the steps since the checkpoint before",
            files=lambda run, _: checkpoint_files(run, newest_alone=True),
        ),
        Target(
            name=ALL, what="a file is damaged in every checkpoint", owed="refused",
            lost="nothing: the run is refused",
            files=lambda run, _: checkpoint_files(run, newest_alone=False),
        ),
        Target(
            name=RECORD, what="the run's record is damaged", owed="ended or refused",
            lost="nothing: the run ends or is refused", files=lambda run, _: [[run / "run.json"]],
        ),
        Target(
            name=JOURNALS, what="a journal is damaged", owed="ended", lost="the damaged lines",
            files=lambda run, _: [[run / "metrics.jsonl"], [run / "evaluations.jsonl"]],
        ),
        Target(
            name=STORE, what="a file of the token store is damaged", owed="ended",
            lost="nothing: the data are tokenised anew", files=lambda _, cache: store_files(cache),
        ),
    )
}  # fmt: skip


def damages(draw: random.Random) -> list[Damage]:
    """What is done to a file, in words, and how."""
    flips = [functools.partial(flip, at=draw.random()) for _ in range(FLIPS)]
    return [
        *(("a bit is flipped", flip_there) for flip_there in flips),
        ("cut off", functools.partial(cut_off, at=draw.random())),
        ("emptied", functools.partial(cut_off, at=0.0)),
        ("removed", Path.unlink),
    ]


def cut_off(file: Path, at: float) -> None:
    os.truncate(file, int(at * file.stat().st_size))


def flip(file: Path, at: float) -> None:
    content = bytearray(file.read_bytes())
    place = int(at * len(content))
    content[place] ^= 1 << int(at * 8 * len(content)) % 8
    file.write_bytes(content)


def tried(target: Target, ground: Path, folder: Path) -> Row:
    """Every damage to each of its files, in one row."""
    draw = random.Random(target.name)
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    names, said = [], ""
    for number, known in enumerate(
        target.files(folder / "base" / "run", folder / "base" / "cache")
    ):
        names.append(f"`{known[0].name}`")
        for what, damage in damages(draw):
            trial = folder / "trial"
            shutil.rmtree(trial, ignore_errors=True)
            shutil.copytree(folder / "base", trial)
            for file in target.files(trial / "run", trial / "cache")[number]:
                damage(file)
            kept = journal_lines(trial / "run") if target.name == JOURNALS else None
            outcome, message = resumed(ground, trial, whole=folder / "whole" / "run", kept=kept)
            outcomes[outcome] += 1
            said = said or message
            if outcome not in target.owed.split(" or "):
                faults.append(f"{names[-1]}, {what}: {outcome} ({message})")
    return Row(
        case="damage", done=f"{target.what} ({', '.join(names)})", phase=BEFORE,
        exit=", ".join(f"{count} × {outcome}" for outcome, count in outcomes.items()),
        said=said[:SHOWN], lost=target.lost, broken=tuple(faults),
    )  # fmt: skip


def resumed(ground: Path, trial: Path, *, whole: Path, kept: set[bytes] | None) -> tuple[str, str]:
    """How the damaged run goes on, and what it says of it: ended as the whole one, ended otherwise, refused, crashed."""
    try:
        said = run(settings(ground, trial / "run"), trial / "cache")
    except ChatlmError as error:
        return "refused", str(error).replace(f"{trial}/", "")
    except Exception as error:  # noqa: BLE001  whatever it is, the table names it
        return "crashed", f"{type(error).__name__}: {error}".replace(f"{trial}/", "")[:SHOWN]
    faults = differs(whole, trial / "run")
    if kept is not None:  # the lines that were damaged are lost, the others are not
        faults = [fault for fault in faults if fault.startswith("weights")]
        gone = kept - journal_lines(trial / "run")
        faults += [f"{len(gone)} undamaged lines are lost"] if gone else []
    told = [text.replace(f"{trial}/", "") for text in said if "damaged" in text or "anew" in text]
    return ("ended otherwise", "; ".join(faults)) if faults else ("ended", "".join(told[:1]))


def journal_lines(folder: Path) -> set[bytes]:
    """The whole lines that are as they were written."""
    files = (folder / name for name in ("metrics.jsonl", "evaluations.jsonl"))
    lines = [line for f in files if f.exists() for line in f.read_bytes().splitlines(keepends=True)]
    return {line for line in lines if line in KNOWN_LINES} if KNOWN_LINES else set(lines)


KNOWN_LINES: set[bytes] = set()
"""Of the run before it was damaged."""


def settings(ground: Path, output: Path) -> "TrainSettings":
    """A run of 6 steps of 8 samples, saved every second step."""
    from trainer.config.settings import TrainSettings, WorkloadSettings

    rows = str(ground / "few.jsonl")
    workload = WorkloadSettings(
        model=str(ground / "model"), data=(rows,), max_source_length=24, max_target_length=24,
        dropout=0.0, seed=3, precision="fp32",
    )  # fmt: skip
    return TrainSettings(
        workload=workload, micro_batch=8, effective_batch=8, output_dir=str(output), max_steps=6,
        checkpoint_every=2, eval_every=3, eval_data=(rows,), generate_rows=0, profile="small",
    )  # fmt: skip


def run(settings: "TrainSettings", cache: Path, *, stop_after: int | None = None) -> list[str]:
    """Trains in this process; the notices."""
    from autotune.events import Notice
    from trainer.events import StepEnded
    from trainer.run.loop import train

    os.environ["CHATLM_CACHE"] = str(cache)
    heard: list[object] = []

    def should_stop() -> bool:  # asked before a step is said: the step that is under way counts
        done = sum(isinstance(event, StepEnded) for event in heard)
        return stop_after is not None and done + 1 >= stop_after

    train(settings, heard.append, confirm=lambda: None, should_stop=should_stop)
    return [event.text for event in heard if isinstance(event, Notice)]


def main(ground: Path, folder: Path, names: Sequence[str]) -> None:
    """Writes the rows of those targets into the folder."""
    from trainer.run import results

    results.draw = lambda run: False  # a second each time, and no part of what is compared
    run(settings(ground, folder / "whole" / "run"), folder / "whole" / "cache")
    run(settings(ground, folder / "base" / "run"), folder / "base" / "cache", stop_after=DONE)
    KNOWN_LINES.update(journal_lines(folder / "base" / "run"))
    rows = [tried(TARGETS[name], ground, folder) for name in names]
    (folder / "rows.json").write_text(json.dumps([asdict(row) for row in rows]))


def in_a_process(case: Case, place: Place) -> list[Row]:
    """The rows of the targets that the case's strikes name."""
    names = [strike.done for strike in case.strikes]
    folder = place.folder / "damage"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "bench.chaos_damage", str(place.ground.folder), str(folder), *names],
        cwd=place.folder, capture_output=True, text=True, timeout=DEADLINE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or ["?"])[-1]
        return [row(case, strike, broken=(why,)) for strike in case.strikes]
    found = json.loads((folder / "rows.json").read_text())
    return [Row(**{**each, "broken": tuple(each["broken"])}) for each in found]


def damage(*names: str) -> Case:
    strikes = tuple(Strike(done=name, phase=BEFORE) for name in names)
    return Case(name="damage", run=in_a_process, seconds=60, strikes=strikes)


CASES = (damage(NEWEST), damage(ALL, RECORD), damage(JOURNALS, STORE))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
