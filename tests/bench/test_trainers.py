"""The comparison with other trainers: that it counts alike, that runs meet in rounds, and `plain` is plain."""

import importlib.util
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import profiles
from bench import accumulation, padding, trainers
from bench.plain import in_order
from bench.table import accumulation_rows, read
from bench.trainer_runs import Ran, Task, figures, last_loss, run_ours, run_peer, to_loss
from bench.trainer_tasks import make_profile
from tests.support.data_files import json_lines
from trainer.reading.readers import bundled, read_rows

ROWS = 8
STEPS = 4

needs_datasets = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None,
    reason="datasets is not installed: pip install --group peers",
)


def step(loss: float, seconds: float = 1.0, tokens: int = 100, peak: int = 900) -> dict[str, Any]:
    """A step of which four fifths are no padding."""
    return {
        "tokens": tokens,
        "target_tokens": tokens // 2,
        "padding": 0.2,
        "seconds": seconds,
        "loss": loss,
        "micro_batches": 3,
        "device_peak_bytes": peak,
    }


def ran(*steps: dict[str, Any], error: str | None = None) -> Ran:
    return Ran(steps=steps, host_bytes=1000, card_bytes=0, seconds=30.0, error=error)


@given(shares=st.lists(st.integers(1, 9), min_size=1, max_size=4), effective=st.integers(40, 90))
def test_the_plain_cut_takes_samples_as_they_come(shares: list[int], effective: int) -> None:
    """Each once and in order, micro-batches whole but for each rank's last, whatever the lengths are."""
    lengths = np.random.default_rng(effective).integers(1, 99, size=(effective, 2))

    hands = in_order(lengths, world_size=len(shares), micro_batch=shares, costs=None)

    assert np.concatenate([piece for hand in hands for piece in hand]).tolist() == [
        *range(effective)
    ]
    for size, hand in zip(shares, hands, strict=True):
        assert all(len(piece) == size for piece in hand[:-1])
        assert len(hand[-1]) <= size


def test_the_first_steps_are_not_timed() -> None:
    """And their peaks count all the same; padding is a share of what was padded."""
    run = ran(step(9, 60, peak=999), step(8, 60), step(7, 2), step(6, 4, tokens=200))

    found = figures(run, None)

    assert found["real_tokens_per_second"] == pytest.approx(300 / 6)
    assert found["padding_efficiency"] == pytest.approx(0.8)
    assert found["peak_bytes"] == 999
    assert found["seconds_to_loss"] is None


def test_a_card_is_read_from_the_driver() -> None:
    """Where there is one: a process knows only what its allocator reserved."""
    run = Ran(steps=(step(1.0),), host_bytes=1, card_bytes=5000, seconds=1.0)

    assert figures(run, None)["peak_bytes"] == 5000


def test_a_loss_is_that_of_the_last_steps_by_their_tokens() -> None:
    """A step with more to learn counts for more."""
    steps = [step(100.0), *[step(3.0, tokens=100)] * 4, step(1.0, tokens=400)]

    assert last_loss(steps) == pytest.approx((4 * 3 + 4 * 1) / 8)


def test_the_time_to_a_loss_leaves_start_up_out() -> None:
    """The first two steps are counted as the median one at most."""
    steps = [step(9.0 - number, seconds=50 if number < 2 else 2) for number in range(9)]

    assert to_loss(steps, target=5.0) == (7, 14.0)  # steps 3 to 7: the mean of 7 … 3
    assert to_loss(steps, target=0.5) is None


def test_a_ratio_is_taken_within_its_round() -> None:
    """A machine that slows down between the rounds changes none of them."""
    rounds = [
        {"sft": ran(*[step(2, slow)] * 4), "exact": ran(*[step(2, slow / 2)] * 4)}
        for slow in (1.0, 5.0, 3.0)
    ]

    document = trainers.compare(rounds, "sft")

    theirs, ours = document["trainers"]
    assert [run["speed_ratio"] for run in ours["runs"]] == pytest.approx([2.0, 2.0, 2.0])
    assert theirs["real_tokens_per_second"] == pytest.approx(100 / 3)
    assert ours["holds"]
    assert theirs["holds"] is None


def test_a_run_that_failed_is_named_and_left_out() -> None:
    """With its whole round, where it is the peer's: there is nothing to hold the others against."""
    good, bad = ran(*[step(2)] * 4), ran(error="exit code 1: no memory")
    rounds = [
        {"sft": bad, "exact": good},
        {"sft": good, "exact": bad},
        {"sft": good, "exact": good},
    ]

    document = trainers.compare(rounds, "sft")

    assert document["errors"] == ["exit code 1: no memory"] * 2
    assert [len(found["runs"]) for found in document["trainers"]] == [2, 1]


def test_a_cut_must_hold_both_its_promises() -> None:
    """The padding and the speed."""
    quick, sparse = step(2, 0.5), {**step(2, 0.5), "padding": 0.5}
    rounds = [
        {"plain": ran(*[step(2)] * 4), "exact": ran(*[quick] * 4), "grouped": ran(*[sparse] * 4)}
    ]

    document = padding.compare(rounds)

    assert [found["holds"] for found in document["trainers"]] == [None, True, False]


def test_the_tables_have_a_row_for_each_trainer() -> None:
    """In the words of the docs; a loss that was not reached has no time."""
    rounds = [{"sft": ran(*[step(2)] * 6), "grouped": ran(*[step(3)] * 6)}]
    found = {"peer": "sft", "model": "llama-tiny", **trainers.compare(rounds, "sft")}

    rows = trainers.table({"comparisons": [found]}).splitlines()[2:]

    assert rows == [
        "| `llama-tiny`: TRL, SFTTrainer | 100 | 1.00 × (1.00–1.00) | 0.80 | 3 | 0.00 GiB | 0.00 GiB "
        "| 5 s, 5 steps |",
        "| `llama-tiny`: ours, `--length-grouping` | 100 | 1.00 × (1.00–1.00) | 0.80 | 3 | 0.00 GiB | 0.00 GiB "
        "| not in these steps |",
    ]


def test_the_measured_norms_are_flat_where_they_are_ours() -> None:
    """And Seq2SeqTrainer's grow with the accumulation, as the README says of the same file."""
    document = read("accumulation-cpu")
    spread = {
        (found["model"], found["trainer"]): found["largest_to_smallest"]
        for found in document["trainers"]
    }

    assert all(found["accumulation"] == [1, 2, 4, 8] for found in document["trainers"])
    assert spread["chatlm-tiny", "ours"] == pytest.approx(1, abs=1e-5)
    assert spread["llama-tiny", "ours"] == pytest.approx(1, abs=1e-5)
    assert spread["chatlm-tiny", "seq2seq"] > 4
    assert len(accumulation_rows(document)) == 1


def task(folder: Path, micro_batch: int) -> Task:
    """The first bundled rows, all of them in every step."""
    rows = islice(read_rows(bundled("train")), ROWS)
    pairs = [{"prompt": row.prompt, "response": row.response} for row in rows]
    made = Task(
        model="chatlm-tiny",
        is_causal=False,
        data=str(json_lines(folder, pairs)),
        tokens="",
        folder=str(folder),
        profile=str(folder / "profile.toml"),
        micro_batch=micro_batch,
        effective=ROWS,
        steps=STEPS,
        learning_rate=1e-3,
    )
    profiles.save(make_profile(made), Path(made.profile))
    return made


def test_plain_is_our_trainer_with_another_cut(tmp_path: Path) -> None:
    """In a loader process too: sorted, the same eight rows would be padded alike in every step.

    Its steps are read as any run's, and its warm-up is the one that peers are given.
    """
    made = replace(task(tmp_path, micro_batch=3), loaders=1)
    profiles.save(make_profile(made), Path(made.profile))

    run = run_ours(made, "plain")

    assert run.error is None
    assert [found["micro_batches"] for found in run.steps] == [3] * STEPS
    assert len({found["padding"] for found in run.steps}) == STEPS
    rates = [found["learning_rate"] for found in run.steps]
    assert rates.index(max(rates)) + 1 == made.warmup_steps
    assert run.host_bytes > 2**27


@needs_datasets
def test_a_peer_sees_the_same_tokens_and_the_same_gradient(tmp_path: Path) -> None:
    """A step of all samples in one micro-batch is the same for Seq2SeqTrainer and for us."""
    made = accumulation.make_task("chatlm-tiny", bundled("train"), tmp_path, "cpu")

    theirs = accumulation.run(made, "seq2seq", accumulation.SAMPLES)
    ours = accumulation.run(made, "ours", accumulation.SAMPLES)

    their, our = accumulation.first_step(theirs), accumulation.first_step(ours)
    assert [their[key] for key in ("tokens", "target_tokens", "padding")] == pytest.approx(
        [our[key] for key in ("tokens", "target_tokens", "padding")]
    )
    assert their["loss"] == pytest.approx(our["loss"], rel=1e-5)
    assert their["grad_norm"] == pytest.approx(our["grad_norm"], rel=1e-4)


def test_a_run_that_fails_says_so_in_its_last_words(tmp_path: Path) -> None:
    """Its steps are none, and the others' rounds go on."""
    made = task(tmp_path, micro_batch=3)

    run = run_peer(made, "nobody")

    assert run.steps == ()
    assert run.error is not None
    assert "invalid choice: 'nobody'" in run.error
