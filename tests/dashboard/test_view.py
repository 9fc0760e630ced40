"""What a frame says, at the widths that people have."""

import io
import subprocess
import sys
from dataclasses import replace
from functools import reduce
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from autotune.cause import Cause, Failure
from autotune.events import (
    Notice,
    ProbeEnded,
    ProbeStarted,
    ReadingTaken,
    TuningEnded,
    TuningStarted,
)
from autotune.readings import DeviceBudget, DeviceReading, HostReading, Measured
from autotune.trial import Trial
from autotune.verdict import Verdict
from dashboard.event_log import record_events
from dashboard.plain_lines import evaluation_line, sample_line
from dashboard.state import Screen, update
from dashboard.view import render
from trainer.events import (
    CheckpointSaved,
    Evaluated,
    Sample,
    StepEnded,
    Tokenising,
    TrainingEnded,
    TrainingStarted,
)

GIB = 2**30
MIB = 2**20
WIDTHS = (60, 80, 120)
ROOT = Path(__file__).parents[2]


def played(events: list[object], screen: Screen | None = None) -> Screen:
    return reduce(update, events, screen or Screen())


def readings(devices: int, used: int) -> ReadingTaken:
    return ReadingTaken(
        devices=tuple(
            DeviceReading(
                device=f"GPU-{i}", name="NVIDIA A100-SXM4-80GB", total=80 * GIB, used=used,
                utilization=0.97, temperature=61.0, power=280.0,
            )
            for i in range(devices)
        ),
        host=HostReading(total=256 * GIB, used=61 * GIB),
        workers=5 * GIB,
    )  # fmt: skip


def trial(size: int, verdict: Verdict, peak: int | None, failure: Failure | None = None) -> Trial:
    speed = None if peak is None else 52.1
    return Trial(
        size=size, verdict=verdict, peak=peak, seconds=4.2, samples_per_second=speed,
        tokens_per_second=None if speed is None else 26675.2, failure=failure,
    )  # fmt: skip


def tuning(devices: int = 1) -> list[object]:
    budgets = tuple(
        DeviceBudget(
            device=f"GPU-{i}", name="NVIDIA A100-SXM4-80GB", total=80 * GIB, others=8 * GIB,
            budget=40 * GIB,
        )
        for i in range(devices)
    )  # fmt: skip
    return [
        TuningStarted(model="chatlm-0.2b", target=0.6, ceiling=4096, devices=budgets),
        ProbeEnded(trial=trial(1, Verdict.FITS, 4 * GIB), low=1, high=4097),
        ProbeEnded(
            trial=trial(512, Verdict.OOM, None, Failure(cause=Cause.HOST_TARGET)), low=1, high=512
        ),
        ProbeEnded(trial=trial(150, Verdict.OVER, 42 * GIB), low=1, high=150),
        ProbeEnded(trial=trial(141, Verdict.FITS, int(39.6 * GIB)), low=141, high=150),
        ProbeStarted(size=143, low=141, high=150),
        readings(devices, 40 * GIB),
        readings(devices, 28 * GIB),
    ]


def tuned(devices: int = 1) -> list[object]:
    return [
        *tuning(devices),
        ProbeEnded(trial=trial(143, Verdict.FITS, int(39.9 * GIB)), low=143, high=144),
        TuningEnded(answer=143, interrupted=False, seconds=72.0),
    ]


LIMITED = DeviceBudget(
    device="GPU-0", name="NVIDIA A100-SXM4-80GB", total=80 * GIB, others=8 * GIB,
    budget=40 * GIB, hard_limit=44 * GIB,
)  # fmt: skip


def evidence(sizes: tuple[int, ...] = (143,), ended: bool = True) -> list[object]:
    """A tuning on a card that met its hard limit, a kernel's limit, and noise."""
    budgets = (LIMITED,) * len(sizes)
    answer = Measured(
        peak=int(39.9 * GIB), static_bytes=2 * GIB, activation_peak=39 * GIB, context=GIB // 2,
        reserved=int(39.4 * GIB), allocated=int(34.2 * GIB),
    )  # fmt: skip
    small = trial(1, Verdict.FITS, 4 * GIB)
    knee = replace(trial(100, Verdict.FITS, 28 * GIB), samples_per_second=405.0)
    best = replace(
        trial(143, Verdict.FITS, answer.peak), samples_per_second=411.0, speed_spread=0.06,
        sizes=sizes, measured=(answer,) * len(sizes), budgets=budgets,
    )  # fmt: skip
    stopped = Failure(
        cause=Cause.HARD_LIMIT, device="NVIDIA A100-SXM4-80GB",
        held=int(44.3 * GIB), limit=44 * GIB,
    )  # fmt: skip
    blocks = Failure(cause=Cause.SIZE_LIMIT, detail="too many blocks")
    failed = trial(700, Verdict.OOM, None, blocks), trial(512, Verdict.OVER, None, stopped)
    trials = [small, *failed, knee, best]
    return [
        TuningStarted(model="chatlm-0.2b", target=0.6, ceiling=4096, devices=budgets),
        *(ProbeEnded(trial=t, low=1, high=4097) for t in trials),
        readings(1, 28 * GIB),
        *([TuningEnded(answer=143, interrupted=False, seconds=72.0)] if ended else []),
    ]


def training(steps: int = 30, ended: bool = False) -> list[object]:
    head = TrainingStarted(
        model="chatlm-0.2b", rows=120345, first_step=1, steps=100, effective_batch=256,
        micro_batch=64, accumulation=2, world_size=2, precision="bf16", output_dir="runs/a",
    )  # fmt: skip
    record = {
        "learning_rate": 3e-4, "grad_norm": 1.25, "seconds": 2.0, "samples_per_second": 128.0,
        "tokens_per_second": 65536.0, "padding": 0.12, "device_peak_bytes": 39 * GIB,
    }  # fmt: skip
    return [
        head,
        readings(1, 46 * GIB),
        *(StepEnded(record={**record, "step": n, "loss": 2 + 4 / n}) for n in range(1, steps + 1)),
        Evaluated(step=steps, loss=2.25),
        CheckpointSaved(step=steps, path=f"runs/a/step-{steps}"),
        *([TrainingEnded(result={"final_loss": 2.1}, interrupted=False)] if ended else []),
    ]


def drawn(screen: Screen, width: int, height: int = 24, ascii: bool = False) -> str:
    console = Console(record=True, width=width, height=height, file=io.StringIO())
    console.print(render(screen, width, 61.0, height=height, ascii=ascii))
    return console.export_text()


TOKENISING = Tokenising(rows=1_200_000, total=2_000_000, tokens=60_000_000, seconds=30.0)

SCREENS = {
    "nothing yet": Screen(),
    "meters only": played([readings(1, GIB)]),
    "tokenising": played([readings(1, GIB), TOKENISING]),
    "just started": played(tuning()[:1]),
    "tuning": played(tuning()),
    "tuned": played(tuned()),
    "four devices": played(tuning(4)),
    "forty devices": played(tuning(40)),
    "evidence, not ended": played(evidence(ended=False)),
    "evidence": played(evidence()),
    "unequal": played(evidence((143, 70))),
    "many unequal": played(evidence((143, 143, 70, 70))),
    "training": played(training()),
    "training after tuning": played(training(), played(tuned())),
    "trained": played(training(100, ended=True)),
    "notices": played([*tuning(), *(Notice(text="模型 " * 40) for _ in range(9))]),
    "many trials": played(
        [ProbeEnded(trial=trial(n, Verdict.FITS, n * MIB), low=n, high=150) for n in range(1, 60)],
        played(tuning()),
    ),
}


@pytest.mark.parametrize("width", [20, 40, *WIDTHS, 200])
@pytest.mark.parametrize("name", SCREENS)
def test_no_row_is_wider_than_the_terminal(name: str, width: int) -> None:
    rows = drawn(SCREENS[name], width).splitlines()

    assert max(map(cell_len, rows)) <= width
    assert len(rows) <= 24


@pytest.mark.parametrize("name", SCREENS)
@pytest.mark.parametrize("height", [3, 10, 15])
def test_no_frame_is_taller_than_the_terminal(name: str, height: int) -> None:
    assert len(drawn(SCREENS[name], 80, height).splitlines()) <= height


@pytest.mark.parametrize("name", SCREENS)
@pytest.mark.parametrize("width", WIDTHS)
def test_ascii_frames_are_ascii_and_as_wide(name: str, width: int) -> None:
    text = drawn(SCREENS[name], width, ascii=True)

    assert text.isascii()
    assert max(map(len, text.splitlines())) <= width


def test_a_run_says_how_far_its_tokens_are_until_it_trains() -> None:
    """One line, which is gone with the first one of the training itself."""
    training_too = played([TOKENISING, *training()])

    assert "tokenise  1,200,000 of 2,000,000 rows, 40,000 rows/s" in drawn(
        SCREENS["tokenising"], 80
    )
    assert "tokenise" not in drawn(training_too, 80)


@pytest.mark.parametrize("name", ["tuning", "training"])
def test_no_color_keeps_every_word_and_glyph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def written() -> str:
        console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="256")
        with console.capture() as capture:
            console.print(render(SCREENS[name], 80, 61.0))
        return capture.get()

    colored = written()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = written()

    assert "\x1b[36m" in colored or "\x1b[32m" in colored
    assert not any(f"\x1b[{code}m" in plain for code in (31, 32, 33, 36))
    assert Text.from_ansi(plain).plain == Text.from_ansi(colored).plain


@pytest.mark.parametrize("width", WIDTHS)
def test_every_trial_says_its_verdict_in_a_word(width: int) -> None:
    rows = [row.split()[:3] for row in drawn(SCREENS["tuning"], width).splitlines()]

    assert ["1", "✓", "fits"] in rows
    assert ["141", "✓", "fits"] in rows
    assert ["143", "▸", "running"] in rows
    assert ["150", "▲", "over"] in rows
    assert ["512", "✗", "out"] in rows


def test_the_target_mark_is_at_one_column_in_all_trials() -> None:
    rows = drawn(SCREENS["tuned"], 120).splitlines()

    marks = {max(row.find("┃"), row.find("╋")) for row in rows if "fits" in row or "over" in row}
    assert len(marks) == 1
    assert marks != {-1}


def test_the_target_line_of_a_device_is_at_its_share() -> None:
    bar = next(row for row in drawn(SCREENS["tuning"], 102).splitlines() if "█" in row)

    assert bar.index("┃") == 1 + 60  # one column of margin, 60 % of 100 columns
    assert bar.count("▒") == 10  # 8 of 80 GiB
    assert bar.count("█") == 25  # 28 GiB in use, less 8 of others


def test_a_host_device_takes_the_workers_memory_for_ours() -> None:
    """Once the budget is known that of their libraries is others'."""
    device = DeviceReading(device="cpu", name="host memory", total=64 * GIB, used=20 * GIB)
    budget = DeviceBudget(
        device="cpu", name="host memory", total=64 * GIB, others=10 * GIB, budget=30 * GIB
    )
    begun = TuningStarted(model="m", target=0.625, ceiling=8, devices=(budget,))
    host = HostReading(total=64 * GIB, used=20 * GIB)

    reading = ReadingTaken(devices=(device,), host=host, workers=12 * GIB)
    before, text = drawn(played([reading]), 80), drawn(played([begun, reading]), 80)

    assert "others 8.00 GiB" in before
    assert "ours 12.0 GiB" in before
    assert "others 10.0 GiB" in text
    assert "ours 10.0 GiB" in text
    assert "host RAM" not in text


def test_the_fit_line_needs_two_measured_trials() -> None:
    one, two = played(tuning()[:3]), played(tuning()[:4])

    assert "≈" not in drawn(one, 80)
    assert "peak ≈ 3.74 GiB + 261 MiB × size" in drawn(two, 80)


@pytest.mark.parametrize(
    ("answer", "interrupted", "words"),
    [
        (None, False, "no size fits"),
        (None, True, "interrupted before any size fitted"),
        (141, True, "141   best so far, interrupted"),
    ],
)
def test_other_outcomes_are_said_in_words(
    answer: int | None, interrupted: bool, words: str
) -> None:
    ended = TuningEnded(answer=answer, interrupted=interrupted, seconds=9.0)

    assert words in drawn(update(SCREENS["tuning"], ended), 80)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_probe_that_ended_early_says_why_in_its_row(width: int) -> None:
    rows = drawn(SCREENS["evidence"], width).splitlines()

    assert any("512  ▲ over" in row and "stopped at the hard limit" in row for row in rows)
    assert any("700  ✗ size limit" in row and "too many blocks" in row for row in rows)


def test_the_guard_is_marked_beyond_the_budget_and_named_where_there_is_room() -> None:
    wide, narrow = (drawn(SCREENS["evidence, not ended"], width) for width in (120, 80))

    bar = next(row for row in wide.splitlines() if "█" in row)
    assert bar.index("┊") == 1 + 118 * 52 // 80  # 8 GiB of others, 44 of ours
    assert "┊ hard limit 44.0 GiB" in wide
    assert "┊" in narrow
    assert "hard limit 44" not in narrow


def test_training_has_no_guard_and_one_at_the_budget_is_not_marked() -> None:
    training_too = played(training(), played(evidence()))
    screen = played(evidence(ended=False))
    tight = replace(screen, budgets=(replace(LIMITED, hard_limit=LIMITED.budget),))

    assert "┊" not in drawn(training_too, 120)
    assert "┊" not in drawn(tight, 120)


def test_the_peak_of_a_card_is_said_in_its_parts() -> None:
    parts = "tensors 34.2 + cache 5.2 + context 0.5"

    assert f"peak      39.9 GiB = {parts}" in drawn(SCREENS["evidence"], 80)
    assert f"peak      {parts}" in drawn(SCREENS["evidence"], 60)
    assert "tensors" not in drawn(SCREENS["evidence"], 40)
    assert "tensors" not in drawn(SCREENS["evidence, not ended"], 80)
    assert "tensors" not in drawn(SCREENS["tuned"], 80)  # as on a CPU: nothing tells


@pytest.mark.parametrize("width", WIDTHS)
def test_the_knee_is_marked_once_the_search_is_over(width: int) -> None:
    rows = drawn(SCREENS["evidence"], width).splitlines()

    assert [row.split()[0] for row in rows if "knee" in row] == ["100"]
    assert "knee" not in drawn(SCREENS["evidence, not ended"], width)


def test_there_is_no_knee_without_speeds_nor_where_it_is_the_answer() -> None:
    ended = TuningEnded(answer=100, interrupted=False, seconds=72.0)
    screen = played(evidence())
    untimed = tuple(replace(t, samples_per_second=None) for t in screen.trials)

    assert "knee" not in drawn(update(SCREENS["evidence, not ended"], ended), 120)
    assert "knee" not in drawn(replace(screen, trials=untimed), 120)


def test_a_noisy_speed_has_its_spread_where_there_is_room() -> None:
    wide, narrow = (drawn(SCREENS["evidence"], width) for width in (120, 80))
    ascii = drawn(SCREENS["evidence"], 120, ascii=True)

    assert "411    ±3 %" in wide
    assert wide.count("±") == 1
    assert "±" not in narrow
    assert "411   +-3 %" in ascii


MEMORY = ["others 8.00", "ours 20.0", "peak 32.0", "free 52.0", "budget 40.0"]
BRACKET = ["in doubt  141 … 149   of 1 … 4,096   running 143"]
OUTCOME = ["answer    ✓ 143   holds 39.9 GiB   headroom 102 MiB"]


@pytest.mark.parametrize(
    ("name", "widths", "words", "absent"),
    [
        ("tuning", [120], [f"{part} GiB" for part in MEMORY], []),
        ("tuning", WIDTHS, BRACKET, []),
        ("tuned", [80], OUTCOME, ["busy"]),  # the meters no longer tell of the run
        ("unequal", WIDTHS, ["answer    ✓ 143 + 70   holds", "143 + 70  ✓ fits"], []),
        # short enough for a column
        ("many unequal", WIDTHS, ["answer    ✓ 143 + 143 + 70 + 70", "70–143  ✓ fits"], []),
        ("many trials", [80], ["59  ✓ fits", "150  ▲ over"], ["  2  ✓ fits"]),
    ],
    ids=[
        "memory in words too",
        "the bracket and the running size",
        "the answer and its headroom",
        "unequal sizes as one trial",
        "many unequal sizes as one trial",
        "the trials next to the bracket",
    ],
)
def test_a_frame_says(name: str, widths: list[int], words: list[str], absent: list[str]) -> None:
    for text in (drawn(SCREENS[name], width) for width in widths):
        assert [part for part in words if part not in text] == []
        assert [part for part in absent if part in text] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_training_shows_progress_loss_and_speed(width: int) -> None:
    text = drawn(SCREENS["training"], width)

    for words in ("30 of 100", "30 %", "2 m 20 s left", "2.13", "first 6.00", "128 samples/s",
                  "65,536 tokens/s", "3.00e-04", "gradient norm 1.25", "effective 256"):  # fmt: skip
        assert words in text
    assert any(glyph in text for glyph in "▂▃▄▅▆▇")


def test_a_loss_that_is_not_a_number_is_shown_and_not_drawn() -> None:
    screen = SCREENS["training"]
    broken = replace(screen, losses=(*screen.losses, float("nan"), float("inf")))

    assert "loss      inf" in drawn(broken, 80)


def test_names_from_outside_cannot_steer_the_terminal() -> None:
    screen = played([Notice(text="a\x1b[2Jb\nc"), *tuning()])

    text = drawn(screen, 80)

    assert "\x1b" not in text
    assert "a [2Jb c" in text


def test_a_picture_is_drawn_from_recorded_events(tmp_path: Path) -> None:
    now = iter(map(float, range(99))).__next__
    with record_events(tmp_path / "events.jsonl", now) as log:
        for event in tuned():
            log(event)
    command = [sys.executable, "-m", "bench.picture", str(tmp_path / "events.jsonl")]

    subprocess.run([*command, str(tmp_path / "end.svg")], check=True, cwd=ROOT)
    subprocess.run([*command, str(tmp_path / "then.svg"), "--at", "6"], check=True, cwd=ROOT)

    assert "answer" in (tmp_path / "end.svg").read_text(encoding="utf-8")
    assert "running" in (tmp_path / "then.svg").read_text(encoding="utf-8")


SCORED = Evaluated(
    step=2, loss=0.5, bleu=83.84, chrf=89.3, exact_match=0.875, words="zh", generated_rows=24
)


def test_scores_are_a_row_that_gives_way_when_it_gets_narrow() -> None:
    """BLEU stays longest; nothing wraps."""
    screen = played([*training()[:1], SCORED])

    frames = {width: drawn(screen, width) for width in (100, 40, 28)}

    assert "answers   BLEU 83.8 (zh)   exact 87.5 %   chrF 89.3   of 24 rows" in frames[100]
    assert "answers   BLEU 83.8 (zh)" in frames[28]
    assert "chrF" not in frames[28]
    assert all(len(line) <= width for width, text in frames.items() for line in text.split("\n"))


def test_plain_lines_show_what_was_asked_and_answered() -> None:
    """A wrong answer beside the wanted one; a long one is cut, Chinese too."""
    assert evaluation_line(SCORED) == (
        "eval    step 2  loss 0.500  BLEU 83.8 (zh)  exact 87.5 %  chrF 89.3  of 24 rows"
    )
    assert evaluation_line(Evaluated(step=2, loss=0.5)) == "eval    step 2  loss 0.500"
    right = Sample(prompt="在吗", reference="在", answer="在")
    wrong = Sample(prompt="在\x1b[31m吗", reference="在", answer="不" * 99)
    assert sample_line(right) == "sample  在吗 → 在  ✓"
    assert sample_line(wrong) == f"sample  在 [31m吗 → {'不' * 59}…  ✗ wanted 在"
