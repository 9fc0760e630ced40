"""The cut: every sample once, whatever the ranks, sizes and lengths."""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autotune.errors import PlanError
from autotune.partition import MAX_PREDICTED_SHARE, WIDEST, Costs, Counts, sort_orders
from autotune.plan import MicroBatch, Plan, choose_effective, cut

Step = tuple[Counts, tuple[int, ...]]
"""(lengths of both sides, a micro-batch for each rank) that can be cut."""


@st.composite
def even_steps(draw: st.DrawFn, most_ranks: int = 4) -> Step:
    world_size = draw(st.integers(1, most_ranks))
    count = draw(st.integers(world_size, 80))
    sides = st.tuples(st.integers(1, 256), st.integers(1, 256))
    lengths = draw(st.lists(sides, min_size=count, max_size=count))
    micro_batch = draw(st.integers(1, -(-count // world_size)))
    return np.array(lengths, dtype=np.int64), (micro_batch,) * world_size


def can_be_filled(sizes: tuple[int, ...], count: int) -> bool:
    try:
        Plan(micro_batch=sizes, effective_batch=count, world_size=len(sizes))
    except PlanError:
        return False
    return True


@st.composite
def uneven_steps(draw: st.DrawFn) -> Step:
    sizes = tuple(draw(st.lists(st.integers(1, 24), min_size=1, max_size=4)))
    count = draw(st.integers(max(len(sizes), sum(sizes) - 3), 3 * sum(sizes)))
    assume(count >= sum(sizes) or can_be_filled(sizes, count))  # from the sum on all can
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).integers(1, 257, (count, 2)), sizes


STEPS = even_steps() | uneven_steps()
OVERHEADS = st.none() | st.floats(0, 2000)
LONGEST = (256, 256)


def costs(overhead: float | None = None) -> Costs:
    return Costs(longest=LONGEST, overhead=overhead)


def is_as_small(piece: Counts, lengths: Counts, micro_batch: int) -> bool:
    """Whether it takes no more than that many sequences of the longest lengths."""
    widest = lengths[piece].max(0)
    return len(piece) <= micro_batch or (
        len(piece) <= WIDEST * micro_batch
        and costs().sequences(len(piece), widest) <= MAX_PREDICTED_SHARE * micro_batch
    )


@given(STEPS, OVERHEADS)
def test_every_sample_is_in_exactly_one_micro_batch(step: Step, overhead: float | None) -> None:
    """Each rank has its planned share, at least one sample; nothing is dropped or too large."""
    lengths, sizes = step
    plan = Plan(micro_batch=sizes, effective_batch=len(lengths), world_size=len(sizes))

    ranks = cut(lengths, world_size=len(sizes), micro_batch=sizes, costs=costs(overhead))

    positions = np.concatenate([piece for pieces in ranks for piece in pieces])
    assert sorted(positions.tolist()) == list(range(len(lengths)))
    for pieces, size, share in zip(ranks, sizes, plan.shares, strict=True):
        assert all(is_as_small(piece, lengths, size) for piece in pieces)
        assert sum(map(len, pieces)) == share >= 1


@given(STEPS)
def test_without_a_known_overhead_there_are_no_more_micro_batches_than_planned(step: Step) -> None:
    """The profile's accumulation, on the rank that has the most; short samples travel together."""
    lengths, sizes = step
    plan = Plan(micro_batch=sizes, effective_batch=len(lengths), world_size=len(sizes))

    ranks = cut(lengths, world_size=len(sizes), micro_batch=sizes)

    assert max(map(len, ranks)) <= plan.accumulation


@given(even_steps(most_ranks=1), st.floats(1, 2000))
def test_a_cut_by_the_price_never_costs_more_than_the_fewest_or_plain_runs(
    step: Step, overhead: float
) -> None:
    """Padded tokens plus the overhead of every micro-batch: cutting oftener must pay for itself."""
    lengths, (micro_batch,) = step

    (fine,) = cut(lengths, world_size=1, micro_batch=micro_batch, costs=costs(overhead))
    (coarse,) = cut(lengths, world_size=1, micro_batch=micro_batch, costs=costs())

    def cost(pieces: Iterable[Counts]) -> float:
        return float(sum(overhead + len(p) * lengths[p].max(0).sum() for p in pieces))

    runs = [
        np.split(order, range(micro_batch, len(order), micro_batch))
        for order in sort_orders(lengths)
    ]
    assert cost(fine) <= min(cost(coarse), *map(cost, runs)) + 1e-6


@given(STEPS)
def test_shares_are_in_proportion_to_the_sizes(step: Step) -> None:
    """Within one sample, so that no rank waits long for another; they make up the whole step."""
    lengths, sizes = step
    plan = Plan(micro_batch=sizes, effective_batch=len(lengths), world_size=len(sizes))
    due = [len(lengths) * size / sum(sizes) for size in sizes]

    assert sum(plan.shares) == len(lengths)
    assert min(plan.shares) >= 1
    assert all(abs(share - quota) < 1 for share, quota in zip(plan.shares, due, strict=True))


@given(uneven_steps())
def test_uneven_ranks_have_samples_of_every_length(step: Step) -> None:
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


@given(even_steps(), OVERHEADS)
def test_equal_sizes_are_one_size(step: Step, overhead: float | None) -> None:
    """As a list or as a number; the samples are dealt round and round."""
    lengths, sizes = step
    world_size = len(sizes)

    one, listed = (
        cut(lengths, world_size=world_size, micro_batch=micro_batch, costs=costs(overhead))
        for micro_batch in (sizes[0], list(sizes))
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


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (
            (9, 32, 4),
            "micro-batch 9 is larger than one device's share of the effective batch: 32 over 4 "
            "processes is 8; use --micro-batch 8 or less, or tune with a larger --effective-batch",
        ),
        (
            ((5, 2), 6, 2),
            "micro-batches 5 + 2 are larger than the devices' shares of the effective batch: of 6, "
            "the device with 5 takes 4; use --micro-batch 3 or less for all of them, or tune with "
            "--effective-batch 7 or more",
        ),
        (
            ((5, 2), 60, 3),
            "micro-batches 5 + 2 are for 2 processes, not 3; give one size for each process, or one for all",
        ),
        (
            (1, 3, 4),
            "effective batch 3 is smaller than 4 processes; tune with --effective-batch 4 or more, "
            "or use fewer processes",
        ),
        ((0, 3, 2), "micro-batch 0 is not a number of sequences; use 1 or more"),
        ((1, 3, 0), "0 is not a number of processes; use 1 to 65,536"),
        # before a list of the sizes takes all memory
        ((1, 10**13, 10**12), "1000000000000 is not a number of processes; use 1 to 65,536"),
        (
            (list(range(1, 5001)), 60, 3),
            "micro-batches 1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10 + 11 + 12 + 13 + 14 + 15 + 16 + … are "
            "for 5000 processes, not 3; give one size for each process, or one for all",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_numbers(
    numbers: tuple[MicroBatch, int, int], message: str
) -> None:
    """A rank without a sample would hang the others; which rank has which size is not for us to guess."""
    micro_batch, effective_batch, world_size = numbers

    with pytest.raises(PlanError) as raised:
        Plan(micro_batch=micro_batch, effective_batch=effective_batch, world_size=world_size)

    assert str(raised.value) == message


def test_shares_of_other_sides_than_the_datas_are_not_followed() -> None:
    """A profile may name a model that pads both sides as one, and hold the shares of two."""
    lengths = np.array([[8], [4], [2]])

    cuts = [
        cut(
            lengths, world_size=1, micro_batch=2, costs=Costs(longest=(8,), memory_fractions=shares)
        )
        for shares in (None, (0.5, 0.5))
    ]

    assert [[piece.tolist() for piece in ranks[0]] for ranks in cuts] == [[[2, 1], [0]]] * 2


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
