"""The phases of a run as `bench.chaos` strikes in them: how each is seen, and its workers held still in it.

Some phases last a millisecond. The workers are stopped when the phase is seen, and it is looked at again: it
is over where they were too quick, and the next one is waited for.
"""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.processes import handles, send, stop
from bench.small_run import Start

BEFORE = "before the start"
"""What is done is done before the command starts."""
WHOLE = "all of it"
"""What is done lasts from the start to the end."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What a phase is seen by."""

    start: Start
    cache: Path
    first: int
    """Steps that were saved before this start."""


@dataclass(frozen=True)
class Moment:
    """A phase."""

    is_now: Callable[[View], bool]
    holds: bool = True
    """Whether the workers are held still in it."""
    after_a_step: bool = True
    """Whether it comes after this start's first step: the workers are known before then."""
    pause: float = 0.002
    """Seconds between two looks."""


def is_listening(view: View) -> bool:
    """The first moment in which the command handles a signal; the interpreter's own start lies before it."""
    return handles(view.start.process.pid, signal.SIGHUP)


def has_stepped(view: View) -> bool:
    """A step that is not saved is behind it."""
    return view.start.steps() > view.first


EARLY = {"holds": False, "after_a_step": False}
MOMENTS = {
    "first moment": Moment(is_listening, **EARLY, pause=0.0),
    "starting": Moment(lambda view: bool(view.start.workers()), **EARLY),
    "tokenising": Moment(
        lambda view: any(view.cache.glob(".partial-*/tokens.bin")), after_a_step=False
    ),
    "aside": Moment(
        lambda view: (view.start.output / ".aside" / "run.json").exists(), after_a_step=False
    ),
    "on the screen": Moment(has_stepped, after_a_step=False),
    "stepping": Moment(has_stepped),
    "saving": Moment(lambda view: view.start.is_saving(), pause=0.0002),
    "rotating": Moment(lambda view: any(view.start.output.glob(".removing-*")), pause=0.0),
    "evaluating": Moment(lambda view: "evaluating" in view.start.said()),
    "exporting": Moment(lambda view: (view.start.output / ".model").exists(), pause=0.0002),
    "probing": Moment(lambda view: "\nprobe " in view.start.said(), after_a_step=False),
}
"""By name; `aside` is the time in which `--fresh` has moved the old run aside."""


def reach(view: View, phase: str) -> list[int] | None:
    """The workers, held still in that phase where it can be; None where it never came."""
    moment, start = MOMENTS[phase], view.start
    workers: list[int] = []
    if moment.after_a_step:
        start.until(lambda: "\nstep " in start.said(), pause=0.02)
        workers = start.workers()
    while True:
        start.until(lambda: moment.is_now(view), pause=moment.pause)
        if start.process.poll() is not None or not moment.is_now(view):
            return None
        workers = workers or start.workers()
        if not moment.holds:
            return workers
        stop(workers)
        if moment.is_now(view):
            return workers
        send(workers, signal.SIGCONT)
