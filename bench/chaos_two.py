"""Two of everything: two commands at once in one folder, over one profile, one token store, in one second."""

import shutil
import time
from dataclasses import dataclass, field

from bench import chaos_judge as judge
from bench.chaos_case import Case, Row, Run, Strike, aftermath, chain, ended, last, row
from bench.chaos_moments import BEFORE, WHOLE
from bench.chaos_place import FEW, Command, Place
from bench.chaos_signals import SIGNALS, signals
from bench.chaos_tuning import FILE, profile_faults
from bench.small_run import write_rows

ANOTHERS = "train   another run\n"
SECONDS = 60
"""In which the run has begun."""


@dataclass
class Pair:
    """Two commands, and what is broken."""

    case: Case
    place: Place
    commands: list[Command]
    codes: list[int | None] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def wait(self, *wanted: tuple[int, ...]) -> None:
        """Waits for both; in any order they exit with one of the wanted pairs of codes."""
        self.codes = [command.end() for command in self.commands]
        for command, code in zip(self.commands, self.codes, strict=True):
            self.faults += aftermath(command, code, (0, 1))
        if tuple(sorted(code or 0 for code in self.codes)) not in wanted:
            self.faults.append(f"exit {self.codes}")

    def rows(self, lost: str = "nothing") -> list[Row]:
        """The row; what the refused one says is shown."""
        said = next(
            (c for c, code in zip(self.commands, self.codes, strict=True) if code), self.commands[0]
        )
        codes = " and ".join(map(str, self.codes))
        seen = {"exit": codes, "said": last(said), "lost": lost, "broken": tuple(self.faults)}
        return [row(self.case, self.case.strikes[0], **seen)]


def two_trainings(case: Case, place: Place) -> list[Row]:
    """One folder has one run at a time: the second is refused, and the first ends as if it were alone."""
    pair = Pair(case, place, [place.train(), place.train()])
    pair.wait((0, 1))
    pair.faults += ended(place)
    return pair.rows()


def two_fresh(case: Case, place: Place) -> list[Row]:
    place.copy_whole()
    pair = Pair(case, place, [place.train("--fresh"), place.train("--fresh")])
    pair.wait((0, 1))
    pair.faults += ended(place)
    return pair.rows()


def two_stores(case: Case, place: Place) -> list[Row]:
    """Two runs tokenise the same rows: one store is made, and both have it."""
    pair = Pair(case, place, [place.train(), place.train(output="other")])
    pair.wait((0, 0))
    pair.faults += ended(place)
    if pair.codes[1] == 0:
        pair.faults += judge.differs(place.ground.whole, place.folder / "other")
    return pair.rows()


def two_tunings(case: Case, place: Place) -> list[Row]:
    """Of one name, on one device: one waits for the other, and the profile is whole."""
    pair = Pair(case, place, [place.tune(), place.tune()])
    pair.wait((0, 0))
    pair.faults += profile_faults(place, FILE)
    return pair.rows()


def plant_logs(place: Place) -> None:
    """A log of another run that began in the same second, whichever second that will be."""
    (place.folder / "logs").mkdir()
    now = time.time()
    for second in range(SECONDS):
        (place.folder / log_of(now + second)).write_text(ANOTHERS)


def log_of(moment: float) -> str:
    return f"logs/chat_trainer_{time.strftime('%Y%m%d-%H%M%S', time.localtime(moment))}.log"


def mixed_logs(place: Place) -> list[str]:
    """Logs of the other run that have lines of this one."""
    logs = [path.read_text() for path in (place.folder / "logs").iterdir()]
    mixed = sum(ANOTHERS in text and text != ANOTHERS for text in logs)
    return [f"{mixed} logs have the lines of two runs"] if mixed else []


def beside_data(case: Case, place: Place) -> list[Row]:
    """`chatlm data` reads the rows while a training tokenises them."""
    ground = place.ground.folder
    words = ["data", str(ground / "rows.jsonl"), "--model", str(ground / "model")]
    pair = Pair(case, place, [place.train(), Command(place, words, place.output)])
    pair.wait((0, 0))
    pair.faults += ended(place)
    return pair.rows()


def own_rows(place: Place) -> Command:
    """A start of the run on a file of the case's own, of the same rows."""
    mine = place.folder / "rows.jsonl"
    if not mine.exists():
        shutil.copy(place.ground.folder / "rows.jsonl", mine)
    return place.train(rows=mine)


def replace_rows(place: Place) -> None:
    (place.folder / "rows.jsonl").unlink()
    write_rows(place.folder / "rows.jsonl", FEW)


def alone(done: str, run: Run, *, tokens: bool = True) -> Case:
    strikes = (Strike(done=done, phase=WHOLE),)
    return Case(name="two", run=run, tokens=tokens, seconds=25, strikes=strikes)


CASES = (
    alone("two trainings in one folder", two_trainings),
    alone("two `--fresh` over one finished run", two_fresh),
    alone("two tunings that write one profile", two_tunings),
    alone("two trainings tokenise the same rows", two_stores, tokens=False),
    alone("`chatlm data` reads what a training tokenises", beside_data, tokens=False),
    Case(
        name="two", run=chain, seconds=15, check=mixed_logs,
        strikes=(
            Strike(
                done="two trainings begin in one second", phase=WHOLE, codes=(0,),
                before=plant_logs,
            ),
        ),
    ),
    Case(
        name="two", run=chain, seconds=20,
        strikes=(
            Strike(
                done="the data file is replaced in mid-run", phase="stepping", codes=(0,),
                start=own_rows, act=lambda command: replace_rows(command.place),
            ),
        ),
    ),
    Case(
        name="two", run=chain, seconds=30,
        strikes=(
            Strike(
                done="SIGTERM, so that the run is half done", phase="stepping", start=own_rows,
                act=signals(*SIGNALS["SIGTERM"]),
            ),
            Strike(
                done="the data file is another one at the resume", phase=BEFORE, codes=(1,),
                start=own_rows, before=replace_rows, says="has changed",
            ),
        ),
    ),
)  # fmt: skip
