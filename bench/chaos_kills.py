"""SIGKILL of the command, of its worker and of one of two ranks, in every phase; also while `--fresh` replaces a run."""

import os
import shutil
import signal
import time
from pathlib import Path

from bench.chaos_case import Act, Case, Row, Strike, aftermath, chain, ended, last, row
from bench.chaos_judge import content
from bench.chaos_moments import View, reach
from bench.chaos_place import EVERY, Command, Place
from bench.chaos_signals import signals
from bench.processes import send, wait_for

PHASES = ("starting", "tokenising", "stepping", "saving", "rotating", "evaluating", "exporting")
KILLED = -signal.SIGKILL
PATIENT = 10.0
"""Seconds in which a command that is refused has ended."""
STILL = 3.0
"""Seconds in which a worker is held still."""


def kill_supervisor(command: Command) -> None:
    os.kill(command.supervisor, signal.SIGKILL)


def kill_rank(number: int) -> Act:
    """Kills that rank, counted from the end where negative."""
    return lambda command: os.kill(command.workers()[number], signal.SIGKILL)


def killed(victim: str, phases: tuple[str, ...], act: Act, code: int, *, ranks: int = 1) -> tuple[Strike, ...]:  # fmt: skip
    cut = (1, 8) if ranks == 1 else (ranks, 4)
    return tuple(
        Strike(
            done=f"SIGKILL of {victim}", phase=phase, act=act, codes=(code,), most_lost=EVERY,
            cut=cut,
        )
        for phase in phases
    )  # fmt: skip


def at_once(case: Case, place: Place) -> list[Row]:
    """The command is killed and given again before its worker has seen that: it is refused, or goes on."""
    (strike,) = case.strikes
    command = place.train()
    workers = reach(View(start=command, cache=place.cache, first=0), strike.phase)
    if workers is None:
        return [row(case, strike, skipped=f"the moment never came ({last(command)})")]
    strike.act(command)
    again = place.train()  # the worker stands still: it cannot have heard
    wait_for(lambda: again.process.poll() is not None, seconds=PATIENT)
    send(workers, signal.SIGCONT)
    code = again.end()
    faults = [*aftermath(command, command.end(), (KILLED,)), *aftermath(again, code, strike.codes)]
    faults += ended(place) if code == 1 else []
    seen = {"exit": str(code), "said": last(again), "lost": "nothing", "broken": tuple(faults)}
    return [row(case, strike, **seen)]


def fresh(case: Case, place: Place) -> list[Row]:
    """`--fresh` over a finished run is ended before it has saved: the old run is there, whole."""
    rows = []
    for strike in case.strikes:
        shutil.rmtree(place.output, ignore_errors=True)
        place.copy_whole()
        command = place.train("--fresh")
        workers = reach(View(start=command, cache=place.cache, first=0), strike.phase)
        if workers is None:
            rows.append(row(case, strike, skipped=f"the moment never came ({last(command)})"))
            continue
        strike.act(command)
        send(workers, signal.SIGCONT)
        code = command.end()
        is_killed = code == KILLED
        faults = aftermath(command, code, strike.codes)
        faults += gone(place.ground.whole, place.output, hidden=is_killed)
        kept = f"nothing: the old run is {'aside' if is_killed else 'back'}"
        seen = {"exit": str(code), "said": last(command), "lost": kept, "broken": tuple(faults)}
        rows.append(row(case, strike, **seen))
    faults = ended(place, "--fresh")
    return [each if each.skipped else each.but(faults) for each in rows]


def gone(old: Path, folder: Path, *, hidden: bool) -> list[str]:
    """What the folder has no more of the old run; with `hidden`, what the next start would put back counts."""
    now = content(folder)
    aside = content(folder / ".aside") | content(folder / ".returning") if hidden else {}
    lost = [n for n, known in content(old).items() if known not in (now.get(n), aside.get(n))]
    return [f"of the old run is lost: {', '.join(lost[:3])}"] if lost else []


def hold_still(command: Command) -> None:
    time.sleep(STILL)


CASES = (
    Case(
        name="kills", run=chain, tokens=False, seconds=60,
        strikes=killed("the command", PHASES, kill_supervisor, KILLED),
    ),
    Case(
        name="kills", run=chain, tokens=False, seconds=60,
        strikes=killed("the worker", PHASES, kill_rank(0), 1),
    ),
    Case(
        name="kills", run=chain, seconds=70,
        strikes=killed(
            "one of two ranks", ("starting", "stepping", "saving", "evaluating", "exporting"),
            kill_rank(-1), 1, ranks=2,
        ),
    ),
    Case(
        name="fresh", run=fresh, seconds=50,
        strikes=(
            Strike(
                done="SIGKILL of the command in `--fresh`", phase="aside", act=kill_supervisor,
                codes=(KILLED,),
            ),
            Strike(
                done="SIGKILL of the worker in `--fresh`", phase="aside", act=kill_rank(0),
                codes=(1,), says="is back",
            ),
            Strike(
                done="SIGTERM in `--fresh`", phase="aside", codes=(130,), says="is back",
                act=signals(signal.SIGTERM),
            ),
        ),
    ),
    Case(
        name="at once", run=at_once, seconds=25,
        strikes=(
            Strike(
                done="SIGKILL of the command, which is given again at once", phase="stepping",
                act=kill_supervisor, codes=(0, 1),
            ),
        ),
    ),
    Case(
        name="still", run=chain, seconds=20,
        strikes=(
            Strike(
                done=f"the worker is stopped for {STILL:.0f} s", phase="stepping",
                act=hold_still, codes=(0,),
            ),
        ),
    ),
)  # fmt: skip
