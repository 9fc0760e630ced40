"""The cut: every sample once, whatever the ranks, sizes and lengths."""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autotune.errors import PlanError
from autotune.partition import MARGIN, WIDEST, Costs, Counts, sort_orders
from autotune.plan import Plan, choose_effective, cut


@st.composite
def steps(draw: st.DrawFn) -> tuple[Counts, int, int]:
    """(lengths of both sides, world size, micro-batch) that can be cut."""
    world_size = draw(st.integers(1, 4))
    count = draw(st.integers(world_size, 80))
    lengths = draw(
        st.lists(
            st.tuples(st.integers(1, 256), st.integers(1, 256)), min_size=count, max_size=count
        )
    )
    micro_batch = draw(st.integers(1, -(-count // world_size)))
    return np.array(lengths, dtype=np.int64), world_size, micro_batch


def can_be_filled(sizes: tuple[int, ...], count: int) -> bool:
    try:
        Plan(micro_batch=sizes, effective_batch=count, world_size=len(sizes))
    except PlanError:
        return False
    return True


@st.composite
def uneven_steps(draw: st.DrawFn) -> tuple[Counts, tuple[int, ...]]:
    """(lengths of both sides, a size for each rank) that can be cut."""
    sizes = tuple(draw(st.lists(st.integers(1, 24), min_size=1, max_size=4)))
    count = draw(st.integers(max(len(sizes), sum(sizes) - 3), 3 * sum(sizes)))
    assume(count >= sum(sizes) or can_be_filled(sizes, count))  # from the sum on all can
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).integers(1, 257, (count, 2)), sizes


OVERHEADS = st.none() | st.floats(0, 2000)
LONGEST = (256, 256)


def costs(overhead: float | None = None) -> Costs:
    return Costs(longest=LONGEST, overhead=overhead)


def is_as_small(piece: Counts, lengths: Counts, micro_batch: int) -> bool:
    """Whether it takes no more than that many sequences of the longest lengths."""
    widest = lengths[piece].max(0)
    return len(piece) <= micro_batch or (
        len(piece) <= WIDEST * micro_batch
        and costs().sequences(len(piece), widest) <= MARGIN * micro_batch
    )


@given(steps(), OVERHEADS)
def test_every_sample_is_in_exactly_one_micro_batch(
    step: tuple[Counts, int, int], overhead: float | None
) -> None:
    """Nothing is dropped, repeated or too large."""
    lengths, world_size, micro_batch = step

    ranks = cut(lengths, world_size=world_size, micro_batch=micro_batch, costs=costs(overhead))

    positions = np.concatenate([piece for pieces in ranks for piece in pieces])
    assert sorted(positions.tolist()) == list(range(len(lengths)))
    assert all(is_as_small(piece, lengths, micro_batch) for pieces in ranks for piece in pieces)


@given(steps(), OVERHEADS)
def test_ranks_differ_by_one_sample_at_most(
    step: tuple[Counts, int, int], overhead: float | None
) -> None:
    """No rank waits long for another."""
    lengths, world_size, micro_batch = step

    ranks = cut(lengths, world_size=world_size, micro_batch=micro_batch, costs=costs(overhead))

    shares = [sum(map(len, pieces)) for pieces in ranks]
    assert max(shares) - min(shares) <= 1


@given(steps())
def test_without_a_known_overhead_there_are_no_more_micro_batches_than_planned(
    step: tuple[Counts, int, int],
) -> None:
    """The profile's accumulation is what a step of the longest takes; short ones travel together."""
    lengths, world_size, micro_batch = step
    plan = Plan(micro_batch=micro_batch, effective_batch=len(lengths), world_size=world_size)

    ranks = cut(lengths, world_size=world_size, micro_batch=micro_batch)

    assert max(map(len, ranks)) <= plan.accumulation


@given(steps(), st.floats(1, 2000))
def test_a_cut_by_the_price_never_costs_more_than_the_fewest_or_plain_runs(
    step: tuple[Counts, int, int], overhead: float
) -> None:
    """Padded tokens plus the overhead of every micro-batch: cutting oftener must pay for itself."""
    lengths, _, _ = step
    micro_batch = step[2] if step[1] == 1 else 1

    (fine,) = cut(lengths, world_size=1, micro_batch=micro_batch, costs=costs(overhead))
    (coarse,) = cut(lengths, world_size=1, micro_batch=micro_batch, costs=costs())

    def cost(pieces: Iterable[Counts]) -> float:
        return float(sum(overhead + len(p) * lengths[p].max(0).sum() for p in pieces))

    runs = [
        np.split(order, range(micro_batch, len(order), micro_batch))
        for order in sort_orders(lengths)
    ]
    assert cost(fine) <= min(cost(coarse), *map(cost, runs)) + 1e-6


@given(uneven_steps(), OVERHEADS)
def test_uneven_ranks_take_every_sample_once_and_no_more_than_their_size(
    step: tuple[Counts, tuple[int, ...]], overhead: float | None
) -> None:
    """Each its planned share, which is at least one sample."""
    lengths, sizes = step
    plan = Plan(micro_batch=sizes, effective_batch=len(lengths), world_size=len(sizes))

    ranks = cut(lengths, world_size=len(sizes), micro_batch=sizes, costs=costs(overhead))

    positions = np.concatenate([piece for pieces in ranks for piece in pieces])
    assert sorted(positions.tolist()) == list(range(len(lengths)))
    for pieces, size, share in zip(ranks, sizes, plan.shares, strict=True):
        assert all(is_as_small(piece, lengths, size) for piece in pieces)
        assert sum(map(len, pieces)) == share >= 1


@given(uneven_steps())
def test_shares_are_in_proportion_to_the_sizes(step: tuple[Counts, tuple[int, ...]]) -> None:
    """Within one sample; they make up the whole step, and no rank is left without."""
    lengths, sizes = step
    plan = Plan(micro_batch=sizes, effective_batch=len(lengths), world_size=len(sizes))
    due = [len(lengths) * size / sum(sizes) for size in sizes]

    assert sum(plan.shares) == len(lengths)
    assert min(plan.shares) >= 1
    assert all(abs(share - quota) < 1 for share, quota in zip(plan.shares, due, strict=True))


@given(uneven_steps())
def test_uneven_ranks_have_samples_of_every_length(step: tuple[Counts, tuple[int, ...]]) -> None:
    """Of the first n in order each rank has its part: no rank waits for one with the long ones."""
    lengths, sizes = step
    plan = Plan(micro_batch=sizes, effective_batch=len(lengths), world_size=len(sizes))

    ranks = cut(lengths, world_size=len(sizes), micro_batch=sizes)

    def is_dealt_from(order: Counts) -> bool:
        far = [
            np.abs(
                np.isin(order, np.concatenate(pieces)).cumsum()
                - share / len(lengths) * np.arange(1, len(lengths) + 1)
            ).max()
            for pieces, share in zip(ranks, plan.shares, strict=True)
        ]
        return bool(max(far) <= (len(sizes) + 1) / 2)

    assert any(is_dealt_from(order) for order in sort_orders(lengths))


@given(uneven_steps())
def test_uneven_ranks_cut_no_oftener_than_planned(step: tuple[Counts, tuple[int, ...]]) -> None:
    """The profile's accumulation is the most, on the rank that has the most."""
    lengths, sizes = step
    plan = Plan(micro_batch=sizes, effective_batch=len(lengths), world_size=len(sizes))

    ranks = cut(lengths, world_size=len(sizes), micro_batch=sizes)

    assert max(map(len, ranks)) <= plan.accumulation


@given(steps(), OVERHEADS)
def test_equal_sizes_are_one_size(step: tuple[Counts, int, int], overhead: float | None) -> None:
    """As a list or as a number; the samples are dealt round and round."""
    lengths, world_size, micro_batch = step

    one = cut(lengths, world_size=world_size, micro_batch=micro_batch, costs=costs(overhead))
    listed = cut(
        lengths,
        world_size=world_size,
        micro_batch=[micro_batch] * world_size,
        costs=costs(overhead),
    )

    hands = [np.concatenate(pieces).tolist() for pieces in one]
    assert hands in [
        [order[rank::world_size].tolist() for rank in range(world_size)]
        for order in sort_orders(lengths)
    ]
    for rank in range(world_size):
        assert [piece.tolist() for piece in one[rank]] == [p.tolist() for p in listed[rank]]


def test_a_rank_with_twice_the_size_takes_twice_the_samples() -> None:
    """And both need the same number of micro-batches."""
    plan = Plan(micro_batch=(12, 6), effective_batch=240, world_size=2)

    assert plan.shares == (160, 80)
    assert plan.accumulation == 14
    assert (plan.micro_batch, plan.world_size, str(plan)) == (12, 2, "12 + 6")


def test_a_micro_batch_above_the_share_is_refused_with_the_numbers() -> None:
    """32 samples over 4 processes leave 8 for each."""
    with pytest.raises(PlanError) as raised:
        Plan(micro_batch=9, effective_batch=32, world_size=4)

    assert "micro-batch 9" in str(raised.value)
    assert "--micro-batch 8 or less" in str(raised.value)


def test_micro_batches_above_their_shares_are_refused_with_the_numbers() -> None:
    """Of 6 samples the rank with 5 of 7 takes 4."""
    with pytest.raises(PlanError) as raised:
        Plan(micro_batch=(5, 2), effective_batch=6, world_size=2)

    assert str(raised.value) == (
        "micro-batches 5 + 2 are larger than the devices' shares of the effective batch: of 6, "
        "the device with 5 takes 4; use --micro-batch 3 or less for all of them, or tune with "
        "--effective-batch 7 or more"
    )


def test_sizes_for_another_number_of_processes_are_refused() -> None:
    """Which rank should have which is not for us to guess."""
    with pytest.raises(PlanError) as raised:
        Plan(micro_batch=(5, 2), effective_batch=60, world_size=3)

    assert str(raised.value) == (
        "micro-batches 5 + 2 are for 2 processes, not 3; give each its own, or all of them one"
    )


def test_fewer_samples_than_processes_are_refused() -> None:
    """A rank without a sample would hang the others."""
    with pytest.raises(PlanError, match="--effective-batch 4 or more"):
        Plan(micro_batch=1, effective_batch=3, world_size=4)


@given(st.integers(1, 64), st.integers(1, 4), st.integers(4, 512))
def test_the_users_effective_batch_stands_and_a_profiles_only_grows(
    micro_batch: int, world_size: int, wanted: int
) -> None:
    """The knob turns memory, not the optimizer's batch."""
    fixed = choose_effective(micro_batch, world_size=world_size, wanted=wanted, fixed=True)
    grown = choose_effective(micro_batch, world_size=world_size, wanted=wanted, fixed=False)

    assert fixed == wanted
    assert grown == max(wanted, micro_batch * world_size)


def test_uneven_sizes_grow_the_effective_batch_to_their_sum() -> None:
    """Every device gets a whole micro-batch."""
    assert choose_effective((12, 6), world_size=2, wanted=16, fixed=False) == 18
    assert choose_effective((12, 6), world_size=2, wanted=16, fixed=True) == 16
