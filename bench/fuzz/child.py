"""A process that runs some cases of a kind under limits, and prints a line of JSON for each.

    python -m bench.fuzz.child KIND SEED PATIENCE FOLDER < NUMBERS

It is ended by its watchdog where a case takes longer than PATIENCE seconds, also inside a library.
"""

import ctypes
import faulthandler
import importlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from random import Random
from typing import IO

from bench.fuzz.case import Make, Outcome, Place, Prepare, judge

KINDS = {
    "profiles": "bench.fuzz.profiles:prepare",
    "data": "bench.fuzz.data_files:prepare",
    "folders": "bench.fuzz.run_folders:prepare",
    "stores": "bench.fuzz.token_stores:prepare",
}
"""The function that makes the originals of a kind; a kind of another name is such a text itself."""
MEMORY = 1 << 30
"""Bytes that the cases may take beyond what the process holds before them."""
READY = "ready"
OVERRIDES = 0b110
"""The bits of CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
CAPABILITY_VERSION = 0x20080522
PR_SET_PDEATHSIG = 1


def main() -> None:
    kind, seed, patience, folder = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    obey_permissions()
    sys.modules.setdefault("datasets", None)  # type: ignore[arg-type]  # a name is no download
    os.fsync = lambda fd: None  # the disk is not tried, and takes most of the time
    place = Place(Path(folder) / "case")
    (originals := Path(folder) / "originals").mkdir(parents=True)
    say = quiet()
    make = prepare(kind)(originals)
    limit_memory()
    print(READY, file=say, flush=True)
    for number in json.load(sys.stdin):
        faulthandler.dump_traceback_later(float(patience), exit=True)
        outcome = run_case(make, place, kind, int(seed), number)
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(outcome.as_json()), file=say, flush=True)


def run_case(make: Make, place: Place, kind: str, seed: int, number: int) -> Outcome:
    """The outcome of that case, which follows from the kind, the seed and the number alone."""
    place.begin()
    return judge(make(place, Random(f"{kind} {seed} {number}")), place)


def prepare(kind: str) -> Prepare:
    module, _, name = KINDS.get(kind, kind).partition(":")
    found: Prepare = getattr(importlib.import_module(module), name)
    return found


def quiet() -> IO[str]:
    """The standard output; whatever the readers print goes nowhere."""
    say = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    faulthandler.enable()
    return say


def limit_memory() -> None:
    """Lets an allocation fail that takes more than MEMORY beyond what the process holds."""
    status = Path("/proc/self/status").read_text()
    held = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData"))
    limit = held * 1024 + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def obey_permissions() -> None:
    """Gives up the superuser's right to read and write files without permission."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    if libc.capget(header, sets) == 0:
        sets[0] &= ~OVERRIDES
        sets[1] &= ~OVERRIDES
        libc.capset(header, sets)


if __name__ == "__main__":
    main()
