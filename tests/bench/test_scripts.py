"""What the long benchmarks make of their figures; the runs themselves are `make bench`'s."""

import json
import mmap
import os
from pathlib import Path
from typing import Any

import pytest

from bench import rows_2m
from bench.gpu import Bench, Skipped, against_probe, figures, table
from bench.repeat import Run, Tuning, as_tuning, summary, timed
from bench.sampling import summary as summary_of_samples
from trainer.reading.readers import read_rows


def tuning(answer: int = 100, *verdicts: str, peak: int = 900) -> Tuning:
    """A tuning on a budget of 1000 bytes."""
    found = verdicts or ("fits",)
    return Tuning(
        micro_batch=answer,
        verdicts=found,
        sizes=(answer,) * len(found),
        peak_bytes=peak,
        budget_bytes=1000,
        seconds=30.0,
    )


def run(first: Tuning, training_peak: int = 900, second: Tuning | None = None) -> Run:
    return Run(tuning=first, training_peak_bytes=training_peak, training_seconds=9.0, second=second)


def test_answers_are_held_against_their_median() -> None:
    """102 is two away from 100."""
    found = summary([run(tuning(answer)) for answer in (99, 100, 100, 101, 102)])

    assert found["answer"] == {"min": 99, "median": 100, "max": 102}
    assert found["share_within_1_of_the_median"] == pytest.approx(0.8)


def test_a_training_peak_is_held_against_the_probe_and_the_budget() -> None:
    """A peak below the probe's counts as far from it as one above."""
    found = summary([run(tuning(peak=900), 810), run(tuning(peak=950), 960)])

    assert found["highest_training_peak_to_budget"] == pytest.approx(0.96)
    assert found["farthest_training_peak_from_probe"] == pytest.approx(0.1)


def test_runs_are_counted_once_however_many_of_their_trials_failed() -> None:
    """Over budget and out of memory apart."""
    runs = [
        run(tuning(9, "fits", "over", "over", "fits")),
        run(tuning(9, "oom", "fits")),
        run(tuning(9, "fits")),
    ]

    found = summary(runs)

    assert found["runs_with_a_trial_over_budget"] == 1
    assert found["runs_with_a_trial_out_of_memory"] == 1
    assert found["probes"] == {"min": 1, "mean": pytest.approx(7 / 3), "max": 4}


def test_second_tunings_are_those_of_the_runs_that_had_one() -> None:
    """How many probes each took, and whether the answer stayed."""
    runs = [
        run(tuning(9), second=tuning(9)),
        run(tuning(9), second=tuning(8, "over", "fits")),
        run(tuning(9)),
    ]

    found = summary(runs)

    assert found["second_tuning_probes"] == [1, 2]
    assert found["second_tuning_same_answer"] == [True, False]


def test_no_run_is_no_summary() -> None:
    """Where every command has failed."""
    assert summary([]) == {}


def test_a_tuning_is_read_from_what_the_command_prints() -> None:
    """The promised document, one device."""
    document = {
        "micro_batch_size": 7,
        "trials": [{"size": 8, "verdict": "over"}, {"size": 7, "verdict": "fits"}],
        "devices": [{"peak_bytes": 900, "budget_bytes": 1000}],
    }

    found = as_tuning(document, 12.5)

    assert (found.sizes, found.verdicts, found.probes) == ((8, 7), ("over", "fits"), 2)


def test_a_command_that_fails_says_so_in_its_own_words(tmp_path: Path) -> None:
    """The last line of what it wrote."""
    with pytest.raises(RuntimeError) as caught:
        timed(tmp_path, "train", "--profile", "nowhere")

    assert str(caught.value).startswith("train: exit code 1: chatlm: ")


def test_the_meters_cost_is_the_median_and_the_contract_holds_for_all() -> None:
    """One repeat above 1 % breaks it."""
    samples = [
        {"share_of_a_core": share, "readings_per_second": 20.0} for share in (0.004, 0.012, 0.006)
    ]

    found = summary_of_samples(samples)

    assert found["share_of_a_core"] == 0.006
    assert found["highest_share_of_a_core"] == 0.012
    assert not found["holds_the_contract"]
    assert summary_of_samples(samples[:1])["holds_the_contract"]


def step(seconds: float, peak: int) -> dict[str, Any]:
    """One optimizer step of 240 samples and 12,000 tokens."""
    return {
        "samples": 240,
        "micro_batches": 12,
        "samples_per_second": 240 / seconds,
        "tokens_per_second": 12_000 / seconds,
        "device_peak_bytes": peak,
    }


def test_the_first_step_warms_up_and_only_its_peak_counts() -> None:
    """Speed is the median of the others."""
    found = figures([step(60.0, 999), step(2.0, 900), step(3.0, 900), step(4.0, 900)])

    assert found["samples_per_second"] == pytest.approx(80.0)
    assert found["tokens_per_second"] == pytest.approx(4000.0)
    assert found["peak_bytes"] == 999
    assert (found["effective_batch"], found["steps"]) == (240, 4)


def test_every_step_is_held_against_the_probe() -> None:
    """And those over budget are counted."""
    found = against_probe([900, 1010, 950], probe=1000, budget=1005)

    assert found["highest_peak_to_probe"] == pytest.approx(1.01)
    assert found["steps_over_budget"] == 1
    assert found["step_peak_bytes"] == [900, 1010, 950]


def test_a_part_that_fails_leaves_the_others_their_figures(tmp_path: Path) -> None:
    """The file is complete after each part, and says why one is missing."""
    path = tmp_path / "results" / "gpu.json"
    bench = Bench(path, {"machine": {}, "device": "cpu"}, seconds=600)

    def fails() -> dict[str, Any]:
        raise RuntimeError("out of memory")

    def cannot() -> dict[str, Any]:
        raise Skipped("lightning is not installed")

    bench.do("first", lambda: {"answer": 7})
    bench.do("second", fails)
    written = json.loads(path.read_text())
    bench.do("third", cannot)

    first, second = written["parts"]["first"], written["parts"]["second"]
    assert (first["state"], first["answer"]) == ("done", 7)
    assert (second["state"], second["why"]) == ("failed", "RuntimeError: out of memory")
    third = json.loads(path.read_text())["parts"]["third"]
    assert (third["state"], third["why"]) == ("skipped", "lightning is not installed")


@pytest.mark.parametrize("form", rows_2m.FORMATS)
def test_the_rows_of_the_memory_bench_differ_and_a_longer_file_begins_as_a_shorter(
    tmp_path: Path, form: str
) -> None:
    """The bundled rows over and over, each with its own number, the longest first."""
    rows_2m.write_rows(tmp_path / f"few.{form}", 10)
    rows_2m.write_rows(tmp_path / f"many.{form}", 4000)

    few, many = (list(read_rows(str(tmp_path / f"{name}.{form}"))) for name in ("few", "many"))
    assert many[:10] == few
    assert len({row.prompt for row in many}) == 4000
    assert max(len(row.prompt + row.response) for row in many) == len(
        many[0].prompt + many[0].response
    )


def test_the_memory_bench_holds_each_process_against_the_same_one_of_the_reference() -> None:
    """The largest difference of any is what must stay within the promise."""
    peaks = {
        "reference": {"worker": 300, "loader": 100},
        "tokenising": {"worker": 300 + rows_2m.PROMISE, "loader": 90},
        "again": {"worker": 290, "loader": 120},
    }

    found = rows_2m.summary(peaks)
    over = rows_2m.summary(peaks | {"again": {"worker": 301 + rows_2m.PROMISE, "loader": 100}})

    assert found["beyond_reference_bytes"]["again"] == {"worker": -10, "loader": 20}
    assert (found["most_beyond_reference_bytes"], found["holds"]) == (rows_2m.PROMISE, True)
    assert not over["holds"]


SIZE = 40 * 2**20


def test_the_memory_bench_sees_what_a_process_holds_and_spends() -> None:
    """Anonymous bytes that are touched, and time that is used."""
    before = rows_2m.anonymous(os.getpid()), rows_2m.processor_seconds(os.getpid())

    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.write(b"x" * SIZE)
        after = rows_2m.anonymous(os.getpid())

    assert after - before[0] > 0.9 * SIZE
    assert rows_2m.processor_seconds(os.getpid()) >= before[1] > 0


def test_no_part_begins_without_time_to_end(tmp_path: Path) -> None:
    """A call that is cut would bring nothing back."""
    bench = Bench(tmp_path / "gpu.json", {"machine": {}}, seconds=1)
    begun: list[str] = []

    def late() -> dict[str, Any]:
        begun.append("late")
        return {}

    outcome = bench.do("late", late)

    assert (outcome["state"], outcome["why"]) == ("skipped", "no time is left")
    assert begun == []


def test_the_table_has_a_row_for_each_micro_batch_that_was_timed() -> None:
    """Those that failed are in the file alone."""
    named = {"state": "done", "cut": "fast", "micro_batch": 8}
    timed_part = {**named, **figures([step(2.0, 2**30)] * 3)}
    document = {"parts": {"cut fast": timed_part, "cut small": {"state": "failed"}, "hold": {}}}

    rows = table(document).splitlines()[2:]

    assert rows == ["| fast: 8 | 120 | 6,000 | 1.00 GiB |"]
