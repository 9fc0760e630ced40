"""The order of samples is a function of seed and position alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.order import SampleOrder, count_steps


@given(st.integers(1, 50), st.integers(0, 5), st.lists(st.integers(1, 40), min_size=1, max_size=9))
def test_the_stream_is_the_same_however_it_is_taken(rows: int, seed: int, takes: list[int]) -> None:
    """Another effective batch, a resume, another process: the same samples in the same order."""
    whole = SampleOrder(rows, seed).take(0, sum(takes))

    order, start, parts = SampleOrder(rows, seed), 0, []
    for count in takes:
        parts.append(order.take(start, count))
        start += count

    assert np.concatenate(parts).tolist() == whole.tolist()


@given(st.integers(1, 50), st.integers(0, 5))
def test_each_epoch_has_every_row_once(rows: int, seed: int) -> None:
    """And two epochs differ in order."""
    order = SampleOrder(rows, seed)

    epochs = [order.take(epoch * rows, rows).tolist() for epoch in range(3)]

    assert all(sorted(epoch) == list(range(rows)) for epoch in epochs)


def test_another_seed_or_epoch_is_another_order() -> None:
    """Shuffled anew, not rotated."""
    order, other = SampleOrder(100, 1), SampleOrder(100, 2)

    first, second = order.take(0, 100).tolist(), order.take(100, 100).tolist()

    assert first != second
    assert first != other.take(0, 100).tolist()


def test_steps_cover_the_epochs_and_the_last_is_filled_up() -> None:
    """10 rows in steps of 4: 3 steps; a number of steps stands as given."""
    assert count_steps(10, 4, epochs=1, max_steps=None) == 3
    assert count_steps(10, 4, epochs=2, max_steps=None) == 5
    assert count_steps(10, 4, epochs=2, max_steps=7) == 7
