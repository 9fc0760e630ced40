"""Every benchmark whose figures README and docs show, one after another: `make bench`.

    python -m bench.all [--only peers,demo] [--data FILE] [--eval-data FILE]

Each runs in a process of its own; what it prints goes to `logs/bench/`. One that fails does not stop the
others. Those without a figure of speed come last, two at a time; each is other work to the one beside it.
At the end the pages get the new figures, and a table says what got better or worse against the files in git,
and how busy the machine was.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench import compare, table
from bench.commands import ROOT

LOGS = Path("logs/bench")


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A benchmark: `python -m bench.MODULE --result bench/results/FILE.json FLAGS`."""

    module: str
    file: str
    flags: tuple[str, ...] = ()
    minutes: float
    """On two idle cores."""
    is_timed: bool = True
    """Whether any of its figures is a speed, which other work would change."""
    takes: tuple[str, ...] = ()
    """Which of --data and --eval-data it takes."""

    def words(self, given: dict[str, str | None]) -> list[str]:
        """The command, with the data files that were given."""
        files = [word for flag in self.takes if (file := given[flag]) for word in (flag, file)]
        result = str(compare.RESULTS / f"{self.file}.json")
        return [
            sys.executable,
            "-m",
            f"bench.{self.module}",
            "--result",
            result,
            *self.flags,
            *files,
        ]


DATA = ("--data",)
CPU = ("--device", "cpu")
TRAINERS = ("--effective-batch", "120", "--steps", "5", "--rounds", "3")
PROGRAMS = {
    "peers": Program(module="peers", file="peers-cpu", minutes=13),
    "tune-0.2b": Program(module="tune", file="tune-0.2b-cpu", flags=CPU, takes=DATA, minutes=4),
    "faults": Program(module="faults", file="faults-cpu", minutes=3),
    "trainers": Program(module="trainers", file="trainers-cpu", flags=TRAINERS, takes=DATA, minutes=15),
    "presets": Program(module="presets", file="presets-cpu", flags=CPU, minutes=3),
    "demo": Program(module="demo", file="demo-cpu", flags=("--pictures", "docs", *CPU), minutes=4),
    "rows-2m": Program(module="rows_2m", file="rows-2m-cpu", minutes=12),
    "loss": Program(module="loss", file="loss-cpu", minutes=8),
    "padding": Program(
        module="padding", file="padding-cpu", flags=("--steps", "6"), takes=DATA, minutes=6
    ),
    "sampling": Program(module="sampling", file="sampling-cpu", minutes=1),
    "kills": Program(module="kills", file="kills-cpu", is_timed=False, minutes=8),
    "exactness": Program(module="exactness", file="exactness-cpu", is_timed=False, minutes=8),
    "repeat": Program(module="repeat", file="repeat-cpu", is_timed=False, minutes=13),
    "contract": Program(
        module="contract", file="contract-cpu", flags=CPU, takes=DATA, is_timed=False, minutes=3
    ),
    "sft": Program(
        module="sft", file="sft-cpu", flags=("--plot", "docs/loss.svg"), takes=(*DATA, "--eval-data"),
        is_timed=False, minutes=7,
    ),
    "accumulation": Program(
        module="accumulation", file="accumulation-cpu", is_timed=False, minutes=3
    ),
    "simulate": Program(module="simulate", file="search-simulated", is_timed=False, minutes=2),
}  # fmt: skip
"""By name: first those with figures of speed; both kinds in the order of what they are worth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What became of one program."""

    name: str
    seconds: float
    error: str | None
    """Its last words where it failed."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=names, default=tuple(PROGRAMS), help="by comma")
    parser.add_argument("--data", help="the bundled rows without it")
    parser.add_argument("--eval-data")
    parser.add_argument("--against", default="HEAD", help="the commit of the old files")
    options = parser.parse_args(arguments)
    given = {"--data": options.data, "--eval-data": options.eval_data}
    done = run_all({name: PROGRAMS[name] for name in options.only}, given)
    files = [PROGRAMS[each.name].file for each in done if each.error is None]
    print(f"\n{compare.compare(files, options.against)}\n{summary(done)}", flush=True)
    table.write()
    sys.exit(any(each.error for each in done))


def names(text: str) -> tuple[str, ...]:
    """Programs by name; raises ArgumentTypeError where there is none of that name."""
    found = tuple(text.split(","))
    if unknown := [name for name in found if name not in PROGRAMS]:
        known = ", ".join(PROGRAMS)
        raise argparse.ArgumentTypeError(f"no program {', '.join(unknown)}; there are {known}")
    return found


def run_all(programs: dict[str, Program], given: dict[str, str | None]) -> list[Done]:
    """Those with figures of speed alone, the others two at a time."""
    minutes = sum(program.minutes / (1 if program.is_timed else 2) for program in programs.values())
    print(f"{len(programs)} programs, about {minutes:.0f} minutes on two idle cores", flush=True)
    done: list[Done] = []
    for is_timed, workers in ((True, 1), (False, 2)):
        group = [name for name, program in programs.items() if program.is_timed == is_timed]
        with ThreadPoolExecutor(workers) as pool:
            done += pool.map(lambda name: run(name, programs[name].words(given)), group)
    return done


def run(name: str, words: list[str]) -> Done:
    """One program to its end."""
    log = ROOT / LOGS / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{time.strftime('%H:%M:%S')} {name}: {LOGS / log.name}", flush=True)
    started = time.monotonic()
    with log.open("w") as out:
        code = subprocess.run(words, cwd=ROOT, stdout=out, stderr=out, check=False).returncode
    last = (log.read_text(errors="replace").strip().splitlines() or ["no word"])[-1]
    done = Done(
        name=name, seconds=time.monotonic() - started, error=f"exit code {code}: {last}" if code else None
    )  # fmt: skip
    print(f"{time.strftime('%H:%M:%S')} {summary([done])}", flush=True)
    return done


def summary(done: list[Done]) -> str:
    """A line for each program: its minutes, and whether it failed."""
    return "\n".join(
        f"{each.name}: {each.seconds / 60:.1f} min{f', failed: {each.error}'[:80] if each.error else ''}"
        for each in done
    )


if __name__ == "__main__":
    main()
