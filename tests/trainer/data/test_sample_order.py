"""The order of samples is a function of seed and position alone."""

from collections import Counter
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config.settings import TrainSettings, WorkloadSettings
from trainer.data.sample_order import (
    GroupedSteps,
    PlainSteps,
    Rows,
    SampleOrder,
    StepOrder,
    count_steps,
)


@settings(deadline=None)  # how fast it is does not matter here
@given(st.integers(1, 50), st.integers(0, 5), st.lists(st.integers(1, 40), min_size=1, max_size=9))
def test_the_stream_is_the_same_however_it_is_taken(rows: int, seed: int, takes: list[int]) -> None:
    """Another effective batch, a resume, another process: the same samples in the same order."""
    whole = SampleOrder(rows, seed).take(0, sum(takes))

    order, start, parts = SampleOrder(rows, seed), 0, []
    for count in takes:
        parts.append(order.take(start, count))
        start += count

    assert np.concatenate(parts).tolist() == whole.tolist()


@settings(deadline=None)  # how fast it is does not matter here
@given(st.integers(1, 5000), st.integers(0, 2**63 - 1), st.integers(0, 1000))
def test_each_epoch_has_every_row_once(rows: int, seed: int, epoch: int) -> None:
    """Whatever the number of rows: squares, primes, a single one."""
    taken = SampleOrder(rows, seed).take(epoch * rows, rows)

    assert np.array_equal(np.sort(taken), np.arange(rows))


@settings(deadline=None)  # how fast it is does not matter here
@given(st.integers(20, 2000), st.integers(0, 100), st.integers(0, 100))
def test_another_seed_or_epoch_is_another_order(rows: int, seed: int, epoch: int) -> None:
    """Shuffled anew, not rotated: hardly a row stays where it was."""
    order, start = SampleOrder(rows, seed), epoch * rows

    first, following = order.take(start, rows), order.take(start + rows, rows)
    other = SampleOrder(rows, seed + 1).take(start, rows)

    assert (first == following).mean() < 0.5
    assert (first == other).mean() < 0.5
    assert len(np.unique((first - following) % rows)) > 2


def test_neighbours_are_scattered_as_by_chance() -> None:
    """Where 100,000 rows come to lie is not to be told from where they were."""
    taken = SampleOrder(100_000, 7).take(0, 100_000)

    places = np.arange(100_000)
    assert abs(np.corrcoef(taken, places)[0, 1]) < 0.02
    assert abs(np.corrcoef(taken[1:], taken[:-1])[0, 1]) < 0.02
    halves = np.bincount(taken[:50_000] // 10_000, minlength=10)
    assert (abs(halves - 5_000) < 300).all()  # six deviations


def test_a_million_million_rows_cost_no_more_than_what_is_taken() -> None:
    """No permutation is ever held: 8 TB would not fit."""
    taken = SampleOrder(10**12, 1).take(10**12 - 3, 6)

    assert len(set(taken.tolist())) == 6
    assert ((taken >= 0) & (taken < 10**12)).all()


def lengths(rows: Rows) -> Rows:
    """Of 23 different values, many rows of each; one side."""
    return (rows * 7 % 23)[:, None]


def two_sides(rows: Rows) -> Rows:
    """Independent of each other."""
    return np.stack([rows % 31, rows // 31 % 37], axis=1)


def grouped(rows: int, effective: int, steps: int, seed: int = 3) -> GroupedSteps:
    return GroupedSteps(SampleOrder(rows, seed), effective, steps=steps, lengths=lengths)


def all_rows(order: StepOrder, steps: int) -> list[int]:
    return [row for number in range(steps) for row in order.step(number).tolist()]


@settings(deadline=None)  # how fast it is does not matter here
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 12))
def test_grouping_changes_no_samples_number(rows: int, effective: int, steps: int) -> None:
    """Each as often as in the plain stream, in steps that are whole; also more than there are rows."""
    plain = PlainSteps(SampleOrder(rows, 3), effective)

    steps_of = [grouped(rows, effective, steps).step(number) for number in range(steps)]

    assert all(len(step) == effective for step in steps_of)
    assert Counter(np.concatenate(steps_of).tolist()) == Counter(all_rows(plain, steps))


@settings(deadline=None)  # how fast it is does not matter here
@given(st.lists(st.integers(0, 29), min_size=1, max_size=10))
def test_a_grouped_step_depends_on_its_number_alone(numbers: list[int]) -> None:
    """Not on which were asked for before: a resume, a loader process, another rank."""
    order = grouped(200, 16, 30)

    steps = [order.step(number).tolist() for number in numbers]

    assert steps == [grouped(200, 16, 30).step(number).tolist() for number in numbers]


def test_a_grouped_step_has_like_lengths() -> None:
    """250 steps of 16 among 4,000 rows: a step spans two lengths where a plain one spans nearly all."""
    spans = [np.ptp(lengths(grouped(4000, 16, 250).step(number))) for number in range(250)]
    plain = PlainSteps(SampleOrder(4000, 3), 16)

    assert np.mean(spans) < 2
    assert np.mean([np.ptp(lengths(plain.step(number))) for number in range(250)]) > 15


def test_both_sides_of_a_grouped_step_are_alike() -> None:
    """Short questions with long answers lie apart from long ones with short answers."""
    stream = SampleOrder(4000, 3)
    order = GroupedSteps(stream, 16, steps=250, lengths=two_sides)

    spans = [np.ptp(two_sides(order.step(number)), axis=0) for number in range(250)]

    assert (np.mean(spans, axis=0) < 10).all()  # of 31 and 37


def test_lengths_do_not_rise_from_step_to_step() -> None:
    """Within a window the steps are shuffled."""
    order = grouped(4000, 16, 50)

    means = [lengths(order.step(number)).mean() for number in range(50)]

    assert abs(np.corrcoef(means, np.arange(50))[0, 1]) < 0.5


def test_a_grouped_run_is_another_run_than_a_plain_one() -> None:
    """Its steps see other samples: a resume may not change that."""
    plain = TrainSettings(
        profile="small", workload=WorkloadSettings(), micro_batch=1, effective_batch=2
    )

    assert replace(plain, length_grouping=True).run_key() != plain.run_key()


def test_steps_cover_the_epochs_and_the_last_is_filled_up() -> None:
    """10 rows in steps of 4: 3 steps; a number of steps stands as given."""
    assert count_steps(10, 4, epochs=1, max_steps=None) == 3
    assert count_steps(10, 4, epochs=2, max_steps=None) == 5
    assert count_steps(10, 4, epochs=2, max_steps=7) == 7
