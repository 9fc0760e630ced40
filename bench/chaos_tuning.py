"""`chatlm autotune` that is interrupted or killed: the best size so far is kept, and no profile is damaged."""

import signal
import tomllib

from bench.chaos_case import Case, Row, Strike, aftermath, last, row
from bench.chaos_judge import says
from bench.chaos_kills import KILLED, kill_supervisor
from bench.chaos_moments import View, reach
from bench.chaos_place import Place
from bench.chaos_signals import SIGNALS, signals
from bench.processes import send

FILE, INTERRUPTED = "tuned.toml", "tuned-interrupted.toml"


def tunings(case: Case, place: Place) -> list[Row]:
    """The strikes on one tuning after the other, then one that ends, then the last strike again over its profile."""
    rows = [struck(case, place, strike, wanted=strike.loses) for strike in case.strikes]
    command = place.tune()
    faults = aftermath(command, command.end(), (0,)) + profile_faults(place, FILE)
    whole = (place.folder / "profiles" / FILE).read_bytes() if not faults else b""
    rows.append(struck(case, place, case.strikes[-1], wanted=INTERRUPTED))
    if not faults and (place.folder / "profiles" / FILE).read_bytes() != whole:
        faults = ["the finished profile was changed"]
    return [each.but([f"then: {fault}" for fault in faults]) for each in rows]


def struck(case: Case, place: Place, strike: Strike, *, wanted: str) -> Row:
    """`wanted` is the profile that it writes as interrupted; nothing where it is empty."""
    before = profiles(place)
    command = place.tune()
    workers = reach(View(start=command, cache=place.cache, first=0), strike.phase)
    if workers is None:
        command.end()
        return row(case, strike, skipped=f"the moment never came ({last(command)})")
    strike.act(command)
    send(workers, signal.SIGCONT)
    code = command.end()
    faults = [*aftermath(command, code, strike.codes), *says(command.said(), strike.says)]
    now = profiles(place)
    if wanted:
        faults += profile_faults(place, wanted, interrupted=True)
    elif now != before:
        faults.append(f"profiles changed: {', '.join(sorted(now))}")
    kept = f"nothing: {wanted} has the best so far" if wanted else "the probes so far"
    seen = {"exit": str(code), "said": last(command), "lost": kept, "broken": tuple(faults)}
    return row(case, strike, **seen)


def profiles(place: Place) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (place.folder / "profiles").glob("*")}


def profile_faults(place: Place, name: str, *, interrupted: bool = False) -> list[str]:
    """What is wrong with that profile, and files beside it that are none."""
    folder = place.folder / "profiles"
    strange = [path.name for path in folder.glob("*") if path.suffix != ".toml"]
    found = [f"left beside the profiles: {', '.join(strange)}"] if strange else []
    try:
        document = tomllib.loads((folder / name).read_text())
    except (OSError, ValueError) as error:
        return [*found, f"{name}: {error}"]
    if document.get("interrupted", False) != interrupted:
        found.append(f"{name} does not say that it is {'' if interrupted else 'not '}interrupted")
    return found


def strikes(*names: str) -> tuple[Strike, ...]:
    """In `loses` stands the profile that is written."""
    some: list[Strike] = []
    for name in names:
        act = signals(*SIGNALS[name])
        some.append(Strike(done=f"{name} to a tuning", phase="starting", act=act))
        some.append(Strike(done=f"{name} to a tuning", phase="probing", act=act, loses=FILE))
    return tuple(some)


OTHERS = (
    Strike(done="SIGKILL of a tuning", phase="probing", act=kill_supervisor, codes=(KILLED,)),
    Strike(done="SIGTERM to a tuning", phase="first moment", act=signals(signal.SIGTERM)),
)
CASES = (
    Case(name="tunings", run=tunings, seconds=60, strikes=(*OTHERS, *strikes(*list(SIGNALS)[:3]))),
    Case(name="tunings", run=tunings, seconds=60, strikes=strikes(*list(SIGNALS)[3:])),
)
