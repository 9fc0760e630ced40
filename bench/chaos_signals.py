"""Signals to `chatlm train`, alone and several at once, in every phase: the run saves and exits with 130."""

import os
import signal
import time

from bench.chaos_case import Act, Case, Strike, chain
from bench.chaos_place import EVERY, Command, Place

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
SIGNALS = {
    "SIGINT": (INT,),
    "SIGTERM": (TERM,),
    "SIGHUP": (HUP,),
    "SIGHUP and SIGTERM at once": (HUP, TERM),
    "SIGINT twice within 50 ms": (INT, INT),
    "SIGTERM three times": (TERM, TERM, TERM),
}
"""What comes within milliseconds is one wish: it must save as one does."""
GAP, APART = 0.02, 1.3
"""Seconds between signals of one wish, and between two."""
HEARD = 0.4
"""Seconds in which the command has heard a signal."""


def signals(*numbers: int, gap: float = GAP) -> Act:
    """Sends them to the command's own process."""

    def act(command: Command) -> None:
        pid = command.supervisor
        for number in numbers:
            os.kill(pid, number)
            time.sleep(gap)
        time.sleep(HEARD)

    return act


def strikes(name: str) -> tuple[Strike, ...]:
    """That signal, or those, in every phase of one run. A last evaluation and the export are finished first."""
    act = signals(*SIGNALS[name])
    phases = ("first moment", "starting", "tokenising", "stepping", "saving", "evaluating")
    some = [Strike(done=name, phase=phase, act=act) for phase in phases]
    return (*some, Strike(done=name, phase="exporting", act=act, codes=(0, 130)))


def hang_up(command: Command) -> None:
    command.hang_up()
    time.sleep(HEARD)


def expire(command: Command) -> None:
    """The time of `timeout` is over: it sends SIGTERM to the command, then to the whole process group."""
    os.kill(command.process.pid, signal.SIGALRM)
    time.sleep(HEARD)


def under_timeout(place: Place) -> Command:
    return place.train(in_front=("timeout", "--signal=TERM", "--kill-after=60", "600"))


CASES = (
    *(
        Case(name="signals", run=chain, tokens=False, seconds=50, strikes=strikes(name))
        for name in SIGNALS
    ),
    Case(
        name="ctrl-c twice", run=chain, seconds=25,
        strikes=tuple(
            Strike(
                done="SIGINT twice, more than a second apart", phase=phase, most_lost=EVERY,
                act=signals(INT, INT, gap=APART),
            )
            for phase in ("stepping", "evaluating")
        ),
    ),
    Case(
        name="terminal", run=chain, seconds=20,
        strikes=(
            Strike(
                done="the terminal is closed", phase="on the screen", act=hang_up,
                start=lambda place: place.train(on_terminal=True),
            ),
        ),
    ),
    Case(
        name="timeout", run=chain, seconds=20,
        strikes=(
            Strike(
                done="`timeout -s TERM --kill-after` ends it", phase="stepping", act=expire,
                codes=(124,), start=under_timeout,
            ),
        ),
    ),
)  # fmt: skip
