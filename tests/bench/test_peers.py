"""The comparison with other tuners: that it hands each its step, counts its tries and tells the truth."""

import importlib.util
import json
import weakref
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from autotune.tuning.probe import Load
from bench import peers
from bench.peer import STEPS, Steps, accelerate, binsearch, bisection, power
from bench.peers import Oracle, Ran, Task, Try, find_oracle, row, table
from tests.support.processes import printed_by
from trainer.config.settings import WorkloadSettings

CAPACITY = 100
CEILING = 256
ROWS = 3000

needs_lightning = pytest.mark.skipif(
    importlib.util.find_spec("lightning") is None,
    reason="lightning is not installed: pip install --group peers",
)


class Memory:
    """A byte a sequence."""

    def __init__(self) -> None:
        self.held = 0

    def reset_peak(self) -> None:
        self.held = 0

    def peak(self) -> int:
        return self.held


class Workload:
    """A step that up to `CAPACITY` sequences fit, and that fails as torch does on a CPU."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.workload_info = {"rows": ROWS}
        self.updates = 0

    def forward_backward(self, size: int) -> Load:
        if size > CAPACITY:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        self.memory.held = size
        return Load(size, size)

    def optimizer_step(self) -> None:
        self.updates += 1


def recorded() -> tuple[Steps, StringIO]:
    """The steps of such a workload, and where they are written down."""
    out = StringIO()
    return Steps(Workload, out), out


def tried(out: StringIO) -> list[tuple[int, str]]:
    """The tries that were written down."""
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    return [(line["size"], line["outcome"]) for line in lines]


def test_a_try_is_three_steps_or_an_error() -> None:
    """Whoever calls the steps, and however often: a peer's loop is not ours."""
    steps, out = recorded()

    for _ in range(2 * STEPS):
        steps.step(4)
    fits = steps.runs(CAPACITY + 1)

    assert not fits
    assert tried(out) == [(4, "ran"), (4, "ran"), (CAPACITY + 1, "oom")]


def test_bisection_finds_the_largest_size() -> None:
    """It doubles, then halves the gap, and tries no size twice."""
    steps, out = recorded()

    answer = bisection(steps, CEILING, ROWS)

    sizes = [size for size, _ in tried(out)]
    assert answer == CAPACITY
    assert sizes[:9] == [1, 2, 4, 8, 16, 32, 64, 128, 96]
    assert len(set(sizes)) == len(sizes)


def test_bisection_ends_at_the_ceiling() -> None:
    """Where all fits, and where one is all."""
    steps, _ = recorded()

    answers = [bisection(steps, ceiling, ROWS) for ceiling in (1, 3, 70, CAPACITY)]

    assert answers == [1, 3, 70, CAPACITY]


def test_accelerate_takes_a_tenth_off_until_it_runs() -> None:
    """Its answer is the first size of its ladder that fits."""
    steps, out = recorded()

    answer = accelerate(steps, CEILING, ROWS)

    ladder = [256, 230, 207, 186, 167, 150, 135, 121, 108, 97]
    assert answer == 97
    assert tried(out) == [(size, "ran" if size == 97 else "oom") for size in ladder]


def test_accelerate_builds_anew_at_every_try() -> None:
    """Once to know the workload_info, then for each try, and the one before is gone by then."""
    alive: weakref.WeakSet[Workload] = weakref.WeakSet()
    others: list[int] = []
    out = StringIO()

    def build() -> Workload:
        others.append(len(alive))
        workload = Workload()
        alive.add(workload)
        return workload

    accelerate(Steps(build, out), CEILING, ROWS)

    assert others == [0] * (1 + len(tried(out)))


@needs_lightning
@pytest.mark.filterwarnings("ignore")  # Lightning's advice on loaders and the like
def test_lightning_runs_the_same_step() -> None:
    """Three steps a try; binsearch returns 5 % less than what it found, which it never ran."""
    doubling, doubled = recorded()
    searching, searched = recorded()

    answers = power(doubling, CEILING, ROWS), binsearch(searching, CEILING, ROWS)

    ladder = [(size, "ran") for size in (2, 4, 8, 16, 32, 64)]
    assert answers == (64, 95)
    assert tried(doubled) == [*ladder, (128, "oom")]
    assert (CAPACITY, "ran") in tried(searched)
    assert 95 not in [size for size, _ in tried(searched)]


def test_nothing_heavy_is_imported_before_a_tuner_runs() -> None:
    """So that what an import takes can be told from what a step takes."""
    code = "import sys, bench.peer; print({'torch', 'lightning', 'accelerate'} & set(sys.modules))"

    assert printed_by(code) == "set()\n"


TASK = Task(settings=WorkloadSettings(), effective=32, card=1000, ceiling=64, folder=Path("unused"))
FITTING = Try(size=30, outcome="ran", peak_bytes=990, seconds=1.0)
OVER = Try(size=31, outcome="ran", peak_bytes=1001, seconds=1.0)
REFUSED = Try(size=40, outcome="oom", peak_bytes=None, seconds=1.0)
ORACLE = Oracle(size=30, seconds=60.0, tries=(FITTING, OVER))


def test_a_tuner_is_counted_by_what_its_tries_came_to() -> None:
    """Above the card and out of memory are told apart."""
    ran = Ran(tries=(FITTING, OVER, REFUSED), answer=30, seconds=3.0, error=None)

    found = row(TASK, "ours", [ran], [ran], ORACLE, {30: [8.0]})

    columns = ("probes", "over_budget", "out_of_memory", "answer_to_oracle", "answer_was_run")
    assert [found[column] for column in columns] == [3, 1, 1, 1.0, True]
    assert found["speed_to_oracle"]["median"] == 1.0


def test_ratios_are_between_runs_of_one_round_and_sizes_of_one_turn() -> None:
    """A machine that is slower in one round is so for both; the median counts."""
    ours = [Ran(tries=(FITTING,), answer=30, seconds=s, error=None) for s in (2.0, 8.0, 3.0)]
    theirs = [Ran(tries=(FITTING,), answer=16, seconds=s, error=None) for s in (8.0, 16.0, 10.0)]

    found = row(TASK, "power", theirs, ours, ORACLE, {30: [8.0, 2.0, 6.0], 16: [4.0, 2.0, 3.0]})

    assert found["seconds"] == 10.0
    assert found["time_ratio"] == {"median": 0.3, "least": 0.25, "most": 0.5}
    assert found["speed_to_oracle"] == {"median": 0.5, "least": 0.5, "most": 1.0}


def test_the_oracle_tries_every_size_about_the_largest_that_a_tuner_ran(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Upwards until four in a row are over; a size that happens not to fit does not end it."""

    def process(_: Task, *arguments: str) -> tuple[list[dict[str, Any]], float, str | None]:
        size = int(arguments[-1])
        peak = 990 if size in (33, 35) else 1001
        return [asdict(Try(size=size, outcome="ran", peak_bytes=peak, seconds=1.0))], 1.0, None

    monkeypatch.setattr(peers, "run_process", process)

    found = find_oracle(TASK, [replace(FITTING, size=32), replace(OVER, size=50)])

    assert found.size == 35
    assert [tried.size for tried in found.tries] == [*range(32, 40)]


def test_the_oracle_goes_down_where_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tuner's word that a size fits is not taken."""

    def process(_: Task, *arguments: str) -> tuple[list[dict[str, Any]], float, str | None]:
        size = int(arguments[-1])
        peak = 990 if size <= 30 else 1001
        return [asdict(Try(size=size, outcome="ran", peak_bytes=peak, seconds=1.0))], 1.0, None

    monkeypatch.setattr(peers, "run_process", process)

    assert find_oracle(TASK, [replace(FITTING, size=32)]).size == 30


def test_an_answer_that_never_ran_and_cannot_has_no_speed() -> None:
    """Even where some other tuner's answer of that size was timed."""
    ran = Ran(tries=(FITTING,), answer=64, seconds=3.0, error=None)

    found = row(TASK, "power", [ran], [ran], ORACLE, {30: [8.0], 64: [9.0]})

    assert found["answer_was_run"] is False
    assert found["speed_to_oracle"] is None


def test_the_table_has_a_row_for_each_tuner_and_the_oracle() -> None:
    """One that failed says so, and one whose answer does not run too."""
    good = Ran(tries=(FITTING,), answer=30, seconds=3.0, error=None)
    bold = replace(good, answer=64)
    failed = Ran(tries=(), answer=None, seconds=1.0, error="exit code 1: no module")
    document: dict[str, Any] = {
        "speed_error": None,
        "oracle": {"size": 30, "seconds": 60.0, "tries": [{}, {}, {}]},
        "tuners": [
            row(TASK, name, [ran], [good], ORACLE, {30: [8.0]})
            for name, ran in (("ours", good), ("power", bold), ("binsearch", failed))
        ],
    }

    rows = table(document).splitlines()[2:]

    assert rows == [
        "| `chatlm autotune` | 1 | 0 | 0 | 3 | – | 30 | 100% | yes | 100% |",
        "| Lightning, `scale_batch_size`, power | 1 | 0 | 0 | 3 | 1.00 × (1.00–1.00) | 64 | 213% | no "
        "| does not run |",
        "| Lightning, `scale_batch_size`, binsearch | 0 | 0 | 0 | 1 | – | failed | – | – | – |",
        "| oracle, every size about the answers | 3 | – | – | 60 | – | 30 | 100% | yes | 100% |",
    ]
