"""One case of `bench.chaos`: a run that is disturbed once or more, and then ends undisturbed.

Each disturbance is a `Strike`. The next start of the command resumes what it left, so a case of five strikes
takes six starts. The last start must end as the run that nothing disturbed.
"""

import json
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from bench import chaos_judge as judge
from bench.chaos_moments import BEFORE, WHOLE, View, reach
from bench.chaos_place import EVERY, Command, Place
from bench.processes import send, started_with
from bench.small_run import look_at

Act = Callable[[Command], object]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one strike did."""

    case: str
    done: str
    phase: str
    exit: str = ""
    said: str = ""
    lost: str = ""
    steps_lost: int = 0
    broken: tuple[str, ...] = ()
    skipped: str | None = None
    """Why it was not tried."""

    @property
    def verdict(self) -> str:
        return "broken" if self.broken else "not tried" if self.skipped else "held"

    def but(self, faults: Sequence[str]) -> "Row":
        """The same with more that is broken."""
        return replace(self, broken=(*self.broken, *faults))


@dataclass(frozen=True, kw_only=True)
class Strike:
    """One disturbance: what is done in which phase, and what the command then owes."""

    done: str
    phase: str
    act: Act = lambda command: None
    """What is done to the running command."""
    codes: tuple[int, ...] = (130,)
    most_lost: int = 0
    """Steps."""
    loses: str = ""
    """What is lost, where it is not steps."""
    says: str = ""
    """A pattern of what it says."""
    before: Callable[[Place], object] = lambda place: None
    after: Callable[[Place], object] = lambda place: None
    """What is put right before the command is started again."""
    flags: tuple[str, ...] = ()
    cut: tuple[int, int] = (1, 8)
    start: Callable[[Place], Command] | None = None
    """Another start of the run."""
    why_not: Callable[[], str | None] = lambda: None
    """Why it cannot be tried here."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Strikes on one run."""

    name: str
    run: "Run"
    tokens: bool = True
    """Whether the data are tokenised already."""
    seconds: float = 40.0
    """About what it takes, two at a time on two idle cores."""
    strikes: tuple[Strike, ...] = ()
    flags: tuple[str, ...] = ()
    """Of the start that ends it."""
    check: Callable[[Place], list[str]] = lambda place: []
    """What else is owed in the end."""


Run = Callable[[Case, Place], Sequence[Row]]


def chain(case: Case, place: Place) -> list[Row]:
    """The strikes one after the other, then the end; what is broken in the end is said of each."""
    rows = []
    for strike in case.strikes:
        if why := strike.why_not():
            rows.append(row(case, strike, skipped=why))
            continue
        strike.before(place)
        rows.append(struck(case, place, strike))
        strike.after(place)
    if all(each.skipped for each in rows):
        return rows
    faults = (*ended(place, *case.flags), *case.check(place))
    return [each if each.skipped else each.but(faults) for each in rows]


def row(case: Case, strike: Strike, **seen: object) -> Row:
    values: dict[str, object] = {"case": case.name, "done": strike.done, "phase": strike.phase}
    return Row(**{**values, **seen})  # type: ignore[arg-type]


def struck(case: Case, place: Place, strike: Strike) -> Row:
    """Starts the command, strikes in the phase, and looks at what it left."""
    before = place.newest()
    make = strike.start or (lambda place: place.train(*strike.flags, cut=strike.cut))
    command = make(place)
    if strike.phase not in (BEFORE, WHOLE):
        view = View(start=command, cache=place.cache, first=before)
        workers = reach(view, strike.phase)
        if workers is None:
            command.end()
            return row(case, strike, skipped=f"the moment never came ({last(command)})")
        strike.act(command)
        send(workers, signal.SIGCONT)
    code = command.end()
    newest, faults = look_at(place.output)
    steps = max(newest, command.steps()) if "\nstep " in command.said() else newest
    if code == 0:
        steps = newest = max(newest, steps)
    faults += aftermath(command, code, strike.codes)
    faults += judge.says(command.said(), strike.says)
    faults += judge.lost(steps, newest, before, strike.most_lost)
    return row(
        case, strike, exit=str(code), said=last(command), broken=tuple(faults),
        lost=strike.loses or amount(steps - newest), steps_lost=max(0, steps - newest),
    )  # fmt: skip


def aftermath(command: Command, code: int | None, codes: Sequence[int]) -> list[str]:
    """What any command that has ended owes."""
    if code is None:
        return [f"it did not end, and was killed ({last(command)})"]
    faults = [*judge.exits(code, command.said(), codes), *judge.tracebacks(command.said())]
    faults += judge.survivors(command.mark)
    send(started_with(command.mark), signal.SIGKILL)  # what is left must not disturb other cases
    place = command.place
    return faults + judge.touched(place.canary, judge.content(place.outside), "outside")


def ended(place: Place, *flags: str) -> list[str]:
    """The same command again, undisturbed: it ends as the undisturbed run, and leaves nothing else."""
    faults: list[str] = []
    if not is_finished(place):
        command = place.train(*flags)
        code = command.end()
        faults = aftermath(command, code, (0,))
        if code != 0:
            return [f"then: {fault} ({last(command)})" for fault in faults]
    else:
        faults += judge.touched(place.canary, judge.content(place.outside), "outside")
    faults += judge.differs(place.ground.whole, place.output)
    return [f"then: {f}" for f in (*faults, *judge.leftovers(place.output, place.cache))]


def is_finished(place: Place) -> bool:
    """Whether the run is over: the same command would be refused."""
    with suppress(OSError, ValueError):
        return bool(json.loads((place.output / "run.json").read_text())["finished"])
    return False


def last(command: Command) -> str:
    """The line that says how it ended."""
    if command.process.returncode == -signal.SIGKILL:
        return "nothing: it was killed"
    return judge.line_of(command.said(), command.place.folder, command.place.ground.folder)


def amount(steps: int) -> str:
    return "nothing" if steps <= 0 else f"{steps} step{'s' * (steps > 1)}, saved every {EVERY}"
