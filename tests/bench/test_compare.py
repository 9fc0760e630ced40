"""What got better or worse: figures against the old files, noise, and how busy the machine was."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench import all as every
from bench import compare, demo
from bench.all import PROGRAMS, Done, Program, names, run, summary
from bench.busy import Moment, others_share, own_seconds, processors
from bench.commands import code, write_result
from bench.compare import block, verdict
from bench.figures import COUNT, FIGURES, RATIO, SECONDS, Figure
from bench.paired import paired
from bench.presets import gain, table
from bench.turns import Turn, figures, in_round

TIME = Figure("tuning", "less", SECONDS, lambda d: d["seconds"])
PROBES = Figure("probes", "less", COUNT, lambda d: d["probes"])
GAIN = Figure("gain", "more", RATIO, lambda d: d["gain"])


@pytest.mark.parametrize(
    ("figure", "now", "before", "word"),
    [
        (TIME, 109.0, 100.0, "same"),
        (TIME, 111.0, 100.0, "worse"),
        (TIME, 80.0, 100.0, "better"),
        (PROBES, 4, 3, "worse"),
        (PROBES, 3, 3, "same"),
        (PROBES, 0, 0, "same"),
        (PROBES, 1, 0, "worse"),
        (GAIN, paired([2.0, 2.2], [1.0, 1.0]), paired([1.5, 1.6], [1.0, 1.0]), "better"),
        (GAIN, paired([1.0, 3.0], [1.0, 1.0]), paired([1.5, 1.6], [1.0, 1.0]), "same"),
    ],
)
def test_less_than_its_own_noise_is_no_change(
    figure: Figure, now: Any, before: Any, word: str
) -> None:
    """Counts have none; times 10 %; a ratio that of its kind, or its rounds' where they differ by more."""
    key = {TIME: "seconds", PROBES: "probes", GAIN: "gain"}[figure]

    assert verdict(figure, figure.read({key: now}), figure.read({key: before})) == word


def test_a_figure_that_only_one_file_has_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older program did not know it, or there is no old file; what neither has is left out."""
    other = Figure("other", "less", COUNT, lambda d: d["other"])
    monkeypatch.setitem(FIGURES, "peers-cpu", (TIME, PROBES, other))

    first = block("peers-cpu", {"seconds": 5.0}, None).splitlines()
    later = block("peers-cpu", {"seconds": 4.0}, {"seconds": 5.0, "probes": 3}).splitlines()

    assert first[1].split() == ["tuning", "-", "5.0", "s", "new"]
    assert later[1].split() == ["tuning", "5.0", "s", "4.0", "s", "0.80", "better"]
    assert later[2].split() == ["probes", "3", "-", "not", "measured"]
    assert len(later) == 3


def test_speeds_of_a_busy_machine_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the two files it was; counts are what they are."""
    monkeypatch.setitem(FIGURES, "peers-cpu", (TIME, PROBES))
    idle = {"seconds": 90.0, "code": "abc1234", "others_share": 0.01}
    figures = {"seconds": 5.0, "probes": 3}

    for shares in ((0.4, 0.01), (0.01, 0.4)):
        new, old = ({"measured": idle | {"others_share": share}, **figures} for share in shares)
        heading, time, probes = block("peers-cpu", new, old).splitlines()

        assert heading == (
            f"peers-cpu: 1.5 min at abc1234, others took {shares[0]:.0%} (old: 1.5 min at abc1234, "
            f"others took {shares[1]:.0%})"
        )
        assert time.endswith("  same, busy machine")
        assert probes.endswith("  same")


def test_every_file_is_compared_and_fits_the_screen() -> None:
    """Those in the folder against themselves: no figure is lost that the program wrote."""
    text = compare.compare(tuple(FIGURES), against="HEAD")

    assert {program.file for program in PROGRAMS.values()} <= set(FIGURES)
    assert max(map(len, text.splitlines())) <= compare.WIDTH
    assert "worse" not in {
        verdict(figure, known, known)
        for name, of_file in FIGURES.items()
        for figure in of_file
        if (document := compare.in_folder(name)) is not None
        and (known := figure.read(document)) is not None
    }


def test_without_an_old_file_the_new_figures_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a commit of that name, nor git."""
    monkeypatch.setattr("bench.commands.ROOT", tmp_path)
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    monkeypatch.setitem(FIGURES, "peers-cpu", (TIME,))
    folder = tmp_path / compare.RESULTS
    folder.mkdir(parents=True)

    nothing = compare.compare(["peers-cpu"])
    (folder / "peers-cpu.json").write_text('{"seconds": 5.0}')
    found = compare.compare(["peers-cpu"])

    assert code() is None
    assert nothing == "there are no result files"
    assert found.splitlines()[0] == "peers-cpu: load unknown"
    assert found.splitlines()[1].endswith("new")


def test_others_took_what_the_machine_did_less_what_we_did() -> None:
    """Of two processors, for ten seconds: 12 s were used, 8 s by us."""
    before = Moment(clock=0.0, all=100.0, used=50.0, own=1.0)
    after = Moment(clock=10.0, all=120.0, used=62.0, own=9.0)

    assert others_share(before, after) == pytest.approx(0.2)
    assert others_share(before, before) == 0.0


def test_time_that_a_hypervisor_took_counts_as_used_and_guests_count_once() -> None:
    """The first line of /proc/stat, in hundredths of a second."""
    text = "cpu  100 200 300 4000 50 0 6 7 100 200\ncpu0 1 2 3 4 5 6 7 8 9 10\n"

    every, used = processors(text)

    assert every == pytest.approx(46.63)
    assert used == pytest.approx(6.13)


def test_own_work_is_not_the_others() -> None:
    """What this process computes shows in its own seconds."""
    before = own_seconds()
    while own_seconds() - before < 0.05:
        sum(range(10_000))

    assert own_seconds() - before >= 0.05


def test_a_result_says_how_it_came_about(tmp_path: Path) -> None:
    """Its commit, its seconds, and what others had of the machine; its own machine stays."""
    path = tmp_path / "new" / "some.json"

    write_result(path, {"machine": {"gpu": None}, "answer": 7})

    written = json.loads(path.read_text())
    assert list(written) == ["machine", "measured", "answer"]
    assert written["machine"] == {"gpu": None}
    assert set(written["measured"]) == {"code", "seconds", "others_share"}
    assert 0.0 <= written["measured"]["others_share"] <= 1.0


def test_a_program_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its exit code and last words are told; what it printed is in its log."""
    monkeypatch.setattr(every, "ROOT", tmp_path)

    failed = run("bad", ["sh", "-c", "echo no such card; exit 3"])
    fine = run("good", ["true"])

    assert (failed.error, fine.error) == ("exit code 3: no such card", None)
    assert (tmp_path / "logs/bench/bad.log").read_text() == "no such card\n"
    assert summary([Done(name="bad", seconds=90.0, error=failed.error)]) == (
        "bad: 1.5 min, failed: exit code 3: no such card"
    )


def test_only_known_programs_are_run(capsys: pytest.CaptureFixture[str]) -> None:
    """The error names those that there are."""
    with pytest.raises(SystemExit):
        every.main(["--only", "peers,piers"])

    assert "no program piers; there are peers, tune-0.2b, " in capsys.readouterr().err
    assert names("peers,demo") == ("peers", "demo")


def test_a_program_gets_the_data_files_that_it_takes() -> None:
    """And its own flags."""
    given = {"--data": "rows.parquet", "--eval-data": None}
    program = Program(module="sft", file="sft-cpu", flags=("--plot", "x.svg"), minutes=1,
                      takes=("--data", "--eval-data"))  # fmt: skip

    words = program.words(given)

    assert words[1:] == [
        "-m", "bench.sft", "--result", "bench/results/sft-cpu.json", "--plot", "x.svg",
        "--data", "rows.parquet",
    ]  # fmt: skip


SMALL = Turn(name="small", micro_batch=1, cut="fixed")
TUNED = Turn(name="tuned", micro_batch=16, cut="length")


def step(speed: float) -> dict[str, Any]:
    return {"samples_per_second": speed, "micro_batches": 2, "padding": 0.25}


def test_each_round_of_turns_begins_with_another() -> None:
    """And the first round, which warms up, is not counted."""
    steps = [step(9.0), step(9.0), step(4.0), step(1.0), step(2.0), step(6.0)]

    small, tuned = figures([SMALL, TUNED], steps)

    assert [in_round([SMALL, TUNED], 1, place) for place in (0, 1)] == [TUNED, SMALL]
    assert (small["samples_per_second"], tuned["samples_per_second"]) == ([1.0, 2.0], [4.0, 6.0])
    assert gain({"turns": [small, tuned]}, ("tuned", "length"), ("small", "fixed")) == {
        "median": 3.5, "least": 3.0, "most": 4.0,
    }  # fmt: skip


def test_the_table_of_presets_tells_size_and_cut_apart() -> None:
    """Each ratio is to the first row, with the rounds' least and most."""
    turns = figures([SMALL, TUNED], [step(9.0)] * 2 + [step(4.0), step(1.0), step(2.0), step(6.0)])

    rows = table({"turns": turns}).splitlines()[2:]

    assert rows == [
        "| `small`: 1 | fixed size | 2 | 0.75 | 2 | 1.00 × (1.00–1.00) |",
        "| `tuned`: 16 | by length | 2 | 0.75 | 5 | 3.50 × (3.00–4.00) |",
    ]


def test_the_demo_says_against_what_it_is_faster() -> None:
    """The preset's micro-batch, at the same effective batch, cut as ours and as most trainers cut."""
    small = Turn(name="small", micro_batch=1, cut="length")
    steps = [step(9.0)] * 3 + [step(speed) for speed in (2.0, 4.0, 1.0, 6.0, 1.0, 2.0)]
    document = {
        "emulated": True, "micro_batch_size": 16, "effective_batch_size": 32, "probes": 3, "rounds": 2,
        "peak_bytes": 2**30, "training_peak_bytes": 2**30, "budget_bytes": 2**30, "first_loss": 8.0,
        "final_loss": 0.5, "exact_match": 0.5, "seconds": 200.0,
        "turns": figures([SMALL, small, TUNED], steps),
    }  # fmt: skip

    text = demo.summary(document)

    assert (
        "    speed         5 samples/s. Preset small's micro-batch of 1, same effective batch and samples:\n"
        "                  2, so 2.5 x (2.0 to 3.0), when cut by length as ours is;\n"
        "                  1, so 5.0 x (4.0 to 6.0), in micro-batches of one size, as most trainers cut.\n"
        "                  Medians of 2 steps each, in turns in one process\n"
    ) in text
