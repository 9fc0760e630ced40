"""The screen's state, its words, the line through the peaks, and the record of a run."""

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from autotune.cause import Cause, Failure
from autotune.events import (
    Notice,
    ProbeEnded,
    ProbeStarted,
    ReadingTaken,
    TuningEnded,
    TuningStarted,
)
from autotune.readings import DeviceBudget, DeviceReading, HostReading, Measured, Outside
from autotune.trial import Trial
from autotune.verdict import Verdict
from dashboard.event_log import EVENTS, read_events, record_events
from dashboard.formatting import (
    clean,
    clock,
    duration,
    figure,
    give_or_take,
    micro_batches,
    peak_words,
    reason_words,
    share,
    verdict_word,
)
from dashboard.memory_fit import fit_line
from dashboard.plain_lines import PlainLines
from dashboard.state import RECENT_LOSSES, Screen, budget_of, update
from trainer.events import (
    CheckpointSaved,
    Evaluated,
    StepEnded,
    Tokenising,
    TrainingEnded,
    TrainingStarted,
)

GIB = 2**30
MIB = 2**20


def budget(index: int = 0, gib: int = 4) -> DeviceBudget:
    return DeviceBudget(
        device=f"GPU-{index}", name="Card", total=8 * GIB, others=GIB, budget=gib * GIB
    )


def reading(used: int) -> ReadingTaken:
    device = DeviceReading(device="GPU-0", name="Card", total=8 * GIB, used=used)
    return ReadingTaken(devices=(device,), host=HostReading(total=GIB, used=MIB), workers=MIB)


def measured(*peaks: int) -> tuple[Measured, ...]:
    return tuple(Measured(peak=peak, static_bytes=MIB, activation_peak=peak) for peak in peaks)


def trial(size: int, peak: int | None = GIB, verdict: Verdict = Verdict.FITS) -> Trial:
    return Trial(
        size=size, verdict=verdict, peak=peak, seconds=4.2, measured=measured(peak) if peak else (),
        samples_per_second=52.1, failure=None if peak else Failure(cause=Cause.HOST_TARGET),
    )  # fmt: skip


def started(first_step: int = 1, steps: int = 100) -> TrainingStarted:
    return TrainingStarted(
        model="chatlm-tiny", rows=1000, first_step=first_step, steps=steps, effective_batch=64,
        micro_batch=16, accumulation=4, world_size=1, precision="fp32", output_dir="runs/a",
    )  # fmt: skip


def step(number: int, loss: float = 2.0, **more: float) -> StepEnded:
    return StepEnded(record={"step": number, "loss": loss, "seconds": 2.0, **more})


def played(*events: object) -> Screen:
    return reduce(update, events, Screen())


TUNING = TuningStarted(model="chatlm-tiny", target=0.625, ceiling=256, devices=(budget(),))


def test_an_unknown_event_changes_nothing() -> None:
    screen = played(TUNING)

    assert update(screen, object()) is screen


def test_the_bracket_follows_the_probes() -> None:
    screen = played(TUNING, ProbeStarted(size=8, low=0, high=257))
    after = update(screen, ProbeEnded(trial=trial(8), low=8, high=257))

    assert (screen.running, screen.low, screen.high) == (8, 0, 257)
    assert (after.running, after.low, after.high) == (None, 8, 257)
    assert after.trials == (trial(8),)


def test_the_highest_use_is_of_the_running_probe() -> None:
    first = played(TUNING, ProbeStarted(size=8, low=0, high=257), reading(5 * GIB), reading(GIB))
    second = update(update(first, ProbeStarted(size=4, low=0, high=8)), reading(2 * GIB))

    assert first.highest == {"GPU-0": 5 * GIB}
    assert second.highest == {"GPU-0": 2 * GIB}


@pytest.mark.parametrize(
    ("events", "known"),
    [
        ([TUNING, TuningEnded(answer=8, interrupted=True, seconds=3.0)], {"answer": 8}),
        ([TUNING, ProbeEnded(trial=trial(8), low=8, high=257)], {"answer_trial": None}),
        ([TUNING, started(), step(1)], {"budgets": (budget(),)}),
        (
            [started(), *(step(n, loss=float(n)) for n in range(1, 301))],
            {"losses": tuple(map(float, range(301 - RECENT_LOSSES, 301))), "first_loss": 1.0},
        ),
        ([started(first_step=41)], {"step": 40, "steps": 100}),
        ([started(), step(1), step(2)], {"seconds_left": pytest.approx(2.0 * 98)}),
        ([started(), *(step(n, device_peak_bytes=9.0 - n) for n in (1, 2))], {"peak": 8}),
        ([Notice(text=text) for text in "012345678"], {"notices": ("6", "7", "8")}),
        ([Notice(text=text) for text in "aba"], {"notices": ("b", "a")}),
    ],
    ids=[
        "an interrupted search keeps its best answer",
        "there is no answer's trial before the end",
        "budgets outlive tuning when training follows",
        "losses are bounded and the first is kept",
        "a resumed run starts where it was",
        "the time left is the mean step times the steps left",
        "the peak is the highest of all steps",
        "only the last notices are kept",
        "a notice that comes again stands once, in its newest place",
    ],
)
def test_what_the_screen_knows_after_events(events: list[object], known: dict[str, object]) -> None:
    screen = played(*events)

    assert {name: getattr(screen, name) for name in known} == known


def test_a_peak_is_held_against_the_device_with_the_least_headroom() -> None:
    budgets = (budget(0, gib=4), budget(1, gib=2))
    both = Trial(
        size=1, verdict=Verdict.FITS, peak=GIB, seconds=1.0, measured=measured(3 * GIB, 2 * GIB - 1)
    )

    assert budget_of(both, budgets) == 2 * GIB
    assert budget_of(trial(1), budgets) == 2 * GIB
    assert budget_of(trial(1), ()) is None


def test_a_trial_is_held_against_the_budgets_of_its_own_time() -> None:
    earlier = replace(trial(8), budgets=(budget(gib=3),))

    assert budget_of(earlier, (budget(gib=4),)) == 3 * GIB


def test_a_tenant_that_came_changes_earlier_verdicts_and_the_budget() -> None:
    """As in the engine: evidence stays, what it is held against moves."""
    large = replace(trial(8, 3 * GIB), budgets=(budget(gib=4),))
    failed = replace(trial(16, None, Verdict.OOM), budgets=(budget(gib=4),))
    small = replace(trial(4), budgets=(budget(gib=2),))

    screen = played(
        TUNING, *(ProbeEnded(trial=known, low=0, high=17) for known in (large, failed, small))
    )

    assert screen.budgets == (budget(gib=2),)
    assert [t.verdict for t in screen.trials] == [Verdict.OVER, Verdict.OOM, Verdict.FITS]


def test_the_answer_is_the_newest_trial_of_its_size_that_fits() -> None:
    """One rank's size may stay while another's is still searched; a size may be measured again."""
    one, over, two = (
        replace(trial(12, verdict=verdict), sizes=sizes, seconds=seconds)
        for verdict, sizes, seconds in (
            (Verdict.FITS, (12, 4), 1.0),
            (Verdict.OVER, (12, 8), 2.0),
            (Verdict.FITS, (12, 6), 3.0),
        )
    )
    again = replace(two, seconds=4.0)

    screen = played(
        TUNING,
        *(ProbeEnded(trial=t, low=0, high=13) for t in (one, over, two, again)),
        TuningEnded(answer=12, interrupted=False, seconds=9.0),
    )

    assert screen.answer_trial == again


def test_the_line_goes_through_straight_trials() -> None:
    line = fit_line([trial(size, 400 * MIB + 12 * MIB * size) for size in (1, 8, 64)])

    assert line is not None
    assert line.slope == pytest.approx(12 * MIB)
    assert line.fixed == pytest.approx(400 * MIB)
    assert line.reaches(1000 * MIB) == 50


def test_the_line_leaves_out_the_floor_of_the_optimizer_step() -> None:
    peaks = {1: 3580, 2: 3580, 4: 4173, 8: 6167, 16: 10155, 32: 18130}  # MiB, chatlm-0.2b in fp32

    line = fit_line([trial(size, peak * MIB) for size, peak in peaks.items()])

    assert line is not None
    assert line.trials == 4
    assert line.slope == pytest.approx(498 * MIB, rel=0.01)


def test_unequal_sizes_lie_on_no_one_line() -> None:
    trials = [trial(size, 400 * MIB + 12 * MIB * size) for size in (1, 8, 64)]

    assert fit_line([*trials, replace(trial(70), sizes=(70, 35))]) is None


@pytest.mark.parametrize("peaks", [{}, {4: 900}, {1: 3580, 2: 3580}, {1: 3580, 2: 3579}])
def test_no_line_where_the_trials_tell_no_slope(peaks: dict[int, int]) -> None:
    trials = [trial(size, peak * MIB) for size, peak in peaks.items()]

    assert fit_line([*trials, trial(512, None, Verdict.OOM)]) is None


@pytest.mark.parametrize(
    ("say", "words"),
    [
        (figure, {0.0: "0.00", 0.0123: "0.0123", 2.999: "3.00", 52.14: "52.1", 13300.0: "13,300"}),
        (figure, {math.nan: "nan", 2.9e-5: "2.90e-05"}),
        (duration, {4.21: "4.2 s", 59.97: "1 m 00 s", 72.0: "1 m 12 s"}),
        (clock, {4.21: "4 s", 7500.0: "2 h 05 m"}),
        (lambda n: share(n, 1000), {890: "89 %", 997: "99.7 %", 1000: "100 %", 1003: "100.3 %"}),
        (
            lambda sizes: micro_batches(1200, sizes),
            {(): "1,200", (12, 12): "1,200", (12, 6): "12 + 6"},
        ),
        (clean, {"a\x1b[31mred\nline\x07": "a [31mred line"}),
    ],
)
def test_values_read_well(say: Callable[[Any], str], words: dict[Any, str]) -> None:
    """A share next to the budget says on which side it is; foreign text is one printable line."""
    assert {value: say(value) for value in words} == words


@pytest.mark.parametrize(
    ("verdict", "failure", "word", "full", "short"),
    [
        (Verdict.FITS, None, "fits", None, None),
        (Verdict.OVER, Failure(cause=Cause.HOST_TARGET), "over", *["host memory"] * 2),
        (
            Verdict.OVER,
            Failure(cause=Cause.HARD_LIMIT, device="A100", held=12 * GIB, limit=11 * GIB),
            "over",
            "stopped at 12.0 GiB on A100, past the hard limit of 11.0 GiB",
            "stopped at the hard limit",
        ),
        (
            Verdict.OVER,
            Failure(cause=Cause.HARD_LIMIT, detail="CUDA out of memory\nTried to allocate"),
            "over",
            "stopped at the hard limit: CUDA out of memory",
            "stopped at the hard limit",
        ),
        (
            Verdict.OOM,
            Failure(cause=Cause.DEVICE_OOM, detail="CUDA out of memory"),
            "out of memory",
            *["CUDA out of memory"] * 2,
        ),
        (
            Verdict.OOM,
            Failure(cause=Cause.SIZE_LIMIT, detail="a\tkernel"),
            "size limit",
            *["a kernel"] * 2,
        ),
    ],
)
def test_a_verdict_says_what_ended_the_probe(
    verdict: Verdict, failure: Failure | None, word: str, full: str | None, short: str | None
) -> None:
    ended = replace(trial(8, None, verdict), failure=failure)

    assert (verdict_word(ended), reason_words(ended), reason_words(ended, short=True)) == (
        word,
        full,
        short,
    )


@pytest.mark.parametrize(
    ("spread", "words"), [(None, None), (0.049, None), (0.06, "±3 %"), (0.5, "±25 %")]
)
def test_a_spread_is_said_where_the_speed_is_noisy(spread: float | None, words: str | None) -> None:
    """The steps lie on both sides of their mean, so half of it on each."""
    assert give_or_take(replace(trial(8), speed_spread=spread)) == words


def card(peak: float, *, context: float, reserved: float, allocated: float) -> Measured:
    return Measured(
        peak=int(peak * GIB), static_bytes=MIB, activation_peak=MIB, context=int(context * GIB),
        reserved=int(reserved * GIB), allocated=int(allocated * GIB),
    )  # fmt: skip


PARTS = "tensors 10.1 + cache 1.4 + context 0.5"


@pytest.mark.parametrize(
    ("peak", "reserved", "words"),
    [
        (12.0, 11.5, ("12.0 GiB = ", PARTS)),
        (12.02, 11.5, ("12.0 GiB = ", PARTS)),  # too little to show
        (12.4, 11.5, ("12.4 GiB = ", f"{PARTS} + outside torch 0.4")),
        (10.6, 10.1, ("10.6 GiB = ", "tensors 10.1 + context 0.5")),
        (11.0, 11.5, None),  # less than its parts
        (12.0, 10.0, None),  # tensors beyond what the allocator reserved
    ],
)
def test_a_peak_is_the_sum_of_its_parts_or_nothing(
    peak: float, reserved: float, words: tuple[str, str] | None
) -> None:
    device = card(peak, context=0.5, reserved=reserved, allocated=10.1)

    expected = None if words is None else ("".join(words), words[1])
    assert peak_words(replace(trial(8), measured=(device,))) == expected


def test_of_several_devices_the_tightest_has_its_parts_said() -> None:
    cards = tuple(card(p, context=0.5, reserved=p - 0.5, allocated=p - 1) for p in (11.0, 12.0))

    words = peak_words(replace(trial(8), measured=cards, tightest=1))

    parts = "tensors 11.0 + cache 0.5 + context 0.5"
    assert words == (f"12.0 GiB on device 1 = {parts}", parts)


def test_a_cpu_peak_is_told_with_what_it_leaves_out() -> None:
    outside = Outside(libraries=277 * MIB, mapped=110 * MIB)
    device = Measured(peak=603 * MIB, static_bytes=MIB, activation_peak=MIB, outside=outside)

    words = peak_words(replace(trial(8), measured=(device,)))

    beside = "beside it libraries 277 MiB and mapped files 110 MiB"
    assert words == (f"603 MiB, {beside}", beside)


def test_a_peak_without_a_reading_of_its_parts_has_no_words() -> None:
    assert peak_words(trial(8)) is None
    assert peak_words(trial(8, None, Verdict.OOM)) is None


def printed(*events: object, now: Callable[[], float] = lambda: 0.0) -> list[str]:
    stream = io.StringIO()
    lines = PlainLines(stream, now)
    for event in events:
        lines(event)
    return stream.getvalue().splitlines()


def test_plain_lines_say_each_probe_in_one_line() -> None:
    lines = printed(
        TUNING,
        ProbeStarted(size=48, low=0, high=257),
        reading(3 * GIB),
        ProbeEnded(trial=trial(48, int(3.56 * GIB)), low=48, high=257),
        ProbeEnded(trial=trial(64, None, Verdict.OOM), low=48, high=64),
        TuningEnded(answer=48, interrupted=False, seconds=12.0),
    )

    assert lines == [
        "tune    chatlm-tiny  target 62.5 %  sizes 1 … 256",
        "device  Card  budget 4.00 GiB of 8.00 GiB, others hold 1.00 GiB",
        "probe   48    fits   peak 3.56 GiB of 4.00 GiB (89 %)  52.1 samples/s  4.2 s",
        "probe   64    out of memory  52.1 samples/s  host memory  4.2 s",
        "answer  48  2 probes  12.0 s",
    ]


def test_plain_lines_say_what_a_gpu_told() -> None:
    stopping_early = replace(budget(), hard_limit=int(4.4 * GIB))
    sizes = replace(
        trial(12), sizes=(12, 6), speed_spread=0.06,
        measured=(card(1.0, context=0.25, reserved=0.75, allocated=0.5),),
    )  # fmt: skip

    limit = replace(
        trial(16, None, Verdict.OOM), samples_per_second=None,
        failure=Failure(cause=Cause.SIZE_LIMIT, detail="so many words " * 20),
    )  # fmt: skip

    _, device, fits, limited, answer, peak = printed(
        replace(TUNING, devices=(stopping_early,)),
        ProbeEnded(trial=sizes, low=12, high=257),
        ProbeEnded(trial=limit, low=12, high=16),
        TuningEnded(answer=12, interrupted=False, seconds=12.0),
    )

    assert device.endswith("others hold 1.00 GiB, hard limit 4.40 GiB")
    assert fits == (
        "probe   12 + 6  fits   peak 1.00 GiB of 4.00 GiB (25 %)  52.1 ±3 % samples/s  4.2 s"
    )
    assert limited.startswith("probe   16    size limit  so many words so many")
    assert limited.endswith(" …  4.2 s")
    assert answer == "answer  12 + 6  2 probes  12.0 s"
    assert peak == "peak    1.00 GiB = tensors 0.50 + cache 0.25 + context 0.25"


def test_plain_lines_thin_the_steps() -> None:
    lines = printed(started(steps=200), *map(step, range(1, 201)))

    shown = [line.split()[1] for line in lines[1:]]
    assert shown[:3] == ["1/200", "11/200", "21/200"]
    assert shown[-1] == "200/200"
    assert len(shown) == 21


def test_plain_lines_are_never_silent_for_long() -> None:
    times = map(float, range(0, 1000, 6))

    lines = printed(started(steps=100000), *map(step, range(1, 9)), now=times.__next__)

    assert len(lines) > 3


def test_plain_lines_say_now_and_then_how_far_the_tokens_are() -> None:
    """At first, and then every ten seconds; where the total is known, of how many."""
    stream = io.StringIO()
    seconds = 0.0
    lines = PlainLines(stream, now=lambda: seconds)

    for seconds in (0.5, 5.0, 10.0, 10.5, 11.0):
        lines(Tokenising(rows=int(45_000 * seconds), total=2_000_000, tokens=1, seconds=seconds))
    seconds = 21.0
    lines(Tokenising(rows=900_000, total=None, tokens=1, seconds=20.0))

    assert stream.getvalue().splitlines() == [
        "tokenise 22,500 of 2,000,000 rows, 45,000 rows/s",
        "tokenise 472,500 of 2,000,000 rows, 45,000 rows/s",
        "tokenise 900,000 rows, 45,000 rows/s",
    ]


def test_plain_lines_survive_an_ascii_stream() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")

    PlainLines(stream)(Notice(text="模型 …\x1b[2J"))

    stream.seek(0)
    assert stream.read() == "note    ?? .. [2J\n"


ALL_EVENTS = (
    Notice(text="模型"),
    TUNING,
    ProbeStarted(size=8, low=0, high=257),
    reading(5 * GIB),
    ProbeEnded(trial=trial(8), low=8, high=257),
    ProbeEnded(trial=trial(16, None, Verdict.OOM), low=8, high=16),
    ProbeEnded(
        trial=replace(
            trial(12), sizes=(12, 6), speed_spread=0.06, failure=Failure(cause=Cause.DEVICE_OOM, rank=1),
            budgets=(replace(budget(0), hard_limit=5 * GIB), budget(1)),
            measured=(card(1.0, context=0.25, reserved=0.75, allocated=0.5), *measured(GIB)),
        ),
        low=8, high=16,
    ),
    TuningEnded(answer=None, interrupted=True, seconds=3.5),
    Tokenising(rows=4096, total=None, tokens=180_000, seconds=0.5),
    started(),
    step(1, loss=2.5),
    Evaluated(step=1, loss=2.25),
    CheckpointSaved(step=1, path="runs/a/step-1"),
    TrainingEnded(result={"final_loss": 2.5, "output_dir": "runs/a"}, interrupted=False),
)  # fmt: skip


def test_a_recorded_run_reads_back_as_the_same_events(tmp_path: Path) -> None:
    times = iter(range(100))

    with record_events(tmp_path / "events.jsonl", lambda: float(next(times))) as log:
        for event in (*ALL_EVENTS, object()):
            log(event)

    expected = list(enumerate(ALL_EVENTS, start=1))
    assert {type(event) for event in ALL_EVENTS} == set(EVENTS.values())
    assert list(read_events(tmp_path / "events.jsonl")) == expected


def test_a_record_of_another_version_reads_back(tmp_path: Path) -> None:
    """A field that it lacks has its default, one that is unknown here is passed over."""
    path = tmp_path / "events.jsonl"
    card = {"device": "GPU-0", "name": "Card", "total": 8, "others": 1, "budget": 4}
    old = {
        "size": 8, "verdict": "fits", "peak": 3, "seconds": 4.2, "budgets": [card],
        "device_peaks": [3], "tightest": 0, "fixed": 1, "growing": 2, "reason": None,
    }  # fmt: skip
    line = json.dumps({"event": "ProbeEnded", "at": 1.5, "trial": old, "low": 8, "high": 9})

    path.write_text(f"{line}\n", encoding="utf-8")

    [(_, event)] = read_events(path)
    assert isinstance(event, ProbeEnded)
    assert (event.trial.peak, event.trial.measured, event.trial.sizes) == (3, (), ())
    assert event.trial.budgets[0].hard_limit is None


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    whole = json.dumps({"event": "Notice", "at": 1.5, "text": "a"})
    unknown = json.dumps({"event": "Unheard", "at": 1.6})

    path.write_text(f"{whole}\n{unknown}\n{whole[:-5]}", encoding="utf-8")

    assert list(read_events(path)) == [(1.5, Notice(text="a"))]
