"""What a micro-batch is predicted to take, and where a row of samples is cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.partition import MAX_PREDICTED_SHARE, WIDEST, Costs, partition_points, sort_orders

LONGEST = (200, 120)
TERMS = ((1, 0), (0, 1), (2, 0), (0, 2), (1, 1), (2, 1), (1, 2))
"""Powers of source and target in which a sequence's memory may grow."""


def memory(weights: list[float], count: float, source: float, target: float) -> float:
    relative = source / LONGEST[0], target / LONGEST[1]
    terms = (relative[0] ** i * relative[1] ** j for i, j in TERMS)
    return count * sum(w * term for w, term in zip(weights, terms, strict=True))


@given(
    st.lists(st.floats(0, 1), min_size=len(TERMS), max_size=len(TERMS)).filter(
        lambda w: sum(w) > 0
    ),
    st.integers(1, 64),
    st.integers(1, LONGEST[0]),
    st.integers(1, LONGEST[1]),
    st.booleans(),
)
def test_a_prediction_is_never_too_small(
    weights: list[float], count: int, source: int, target: int, is_measured: bool
) -> None:
    """Whatever a model's memory is made of: layers, attention over one side or both, logits."""
    whole = memory(weights, 1, *LONGEST)
    sides = (memory(weights, 1, LONGEST[0], 0) / whole, memory(weights, 1, 0, LONGEST[1]) / whole)
    costs = Costs(
        longest=LONGEST, memory_fractions=sides if is_measured and sum(sides) > 0 else None
    )

    predicted = costs.sequences(count, np.array([source, target]))

    assert predicted * whole >= memory(weights, count, source, target) * (1 - 1e-9)


def test_measured_shares_let_more_of_the_short_travel_together() -> None:
    """A source that takes a fifth of the memory matters a fifth."""
    widest = np.array([200, 12])

    assert Costs(longest=LONGEST).sequences(10, widest) == 10
    assert Costs(longest=LONGEST, memory_fractions=(0.2, 0.8)).sequences(
        10, widest
    ) == pytest.approx(2.8)
    assert Costs(longest=LONGEST, memory_fractions=(0.1, 0.4)).sequences(
        10, widest
    ) == pytest.approx(2.8)


def test_shares_of_nothing_tell_nothing() -> None:
    """A floor below the activations may hide both sides: the longer relative length counts then."""
    widest = np.array([200, 12])

    assert Costs(longest=LONGEST, memory_fractions=(0.0, 0.0)).sequences(10, widest) == 10


def test_short_samples_travel_many_at_once_and_the_longest_few() -> None:
    """Three of the longest, or what takes no more, up to eight times as many."""
    lengths = np.array([[5, 5]] * 60 + [[100, 60]] * 12 + [[200, 120]] * 6)

    places, _ = partition_points(lengths, 3, Costs(longest=LONGEST))

    sizes = np.diff([0, *places, len(lengths)]).tolist()
    assert max(sizes) == WIDEST * 3
    assert sizes[-2:] == [3, 3]
    assert 5 in sizes  # of half the length: twice as many, less the margin


def test_the_least_price_is_found() -> None:
    """Against every way of cutting eight samples, by brute force."""
    rng = np.random.default_rng(1)
    for overhead in (0.0, 30.0, 400.0):
        lengths = np.sort(rng.integers(1, 100, (8, 2)), axis=0)
        costs = Costs(longest=(100, 100), overhead=overhead)
        every = []
        for mask in range(2**7):
            places = [i + 1 for i in range(7) if mask >> i & 1]
            pieces = np.split(lengths, places)
            if all(
                len(p) <= 2
                or (
                    len(p) <= WIDEST * 2
                    and costs.sequences(len(p), p.max(0)) <= MAX_PREDICTED_SHARE * 2
                )
                for p in pieces
            ):
                every.append(sum(len(p) * p.max(0).sum() + overhead for p in pieces))

        _, price = partition_points(lengths, 2, costs)

        assert price == pytest.approx(min(every))


@given(st.integers(1, 300), st.integers(0, 2**32 - 1), st.sampled_from([1, 2]))
def test_every_order_holds_every_sample_once(count: int, seed: int, sides: int) -> None:
    """However they are laid in a row."""
    lengths = np.random.default_rng(seed).integers(1, 257, (count, sides))

    assert all(sorted(order.tolist()) == list(range(count)) for order in sort_orders(lengths))
