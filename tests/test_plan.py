"""The cut: every sample once, whatever the ranks, sizes and lengths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import PlanError
from autotune.plan import Counts, Plan, choose_effective, cut


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


OVERHEADS = st.none() | st.floats(0, 2000)


@given(steps(), OVERHEADS)
def test_every_sample_is_in_exactly_one_micro_batch(
    step: tuple[Counts, int, int], overhead: float | None
) -> None:
    """Nothing is dropped, repeated or too large."""
    lengths, world_size, micro_batch = step

    ranks = cut(lengths, world_size=world_size, micro_batch=micro_batch, overhead=overhead)

    positions = np.concatenate([piece for pieces in ranks for piece in pieces])
    assert sorted(positions.tolist()) == list(range(len(lengths)))
    assert all(1 <= len(piece) <= micro_batch for pieces in ranks for piece in pieces)


@given(steps(), OVERHEADS)
def test_ranks_differ_by_one_sample_at_most(
    step: tuple[Counts, int, int], overhead: float | None
) -> None:
    """No rank waits long for another."""
    lengths, world_size, micro_batch = step

    ranks = cut(lengths, world_size=world_size, micro_batch=micro_batch, overhead=overhead)

    shares = [sum(map(len, pieces)) for pieces in ranks]
    assert max(shares) - min(shares) <= 1


@given(steps())
def test_without_a_known_overhead_there_are_as_few_micro_batches_as_planned(
    step: tuple[Counts, int, int],
) -> None:
    """The profile's accumulation is what is run."""
    lengths, world_size, micro_batch = step
    plan = Plan(micro_batch=micro_batch, effective_batch=len(lengths), world_size=world_size)

    ranks = cut(lengths, world_size=world_size, micro_batch=micro_batch)

    assert max(map(len, ranks)) == plan.accumulation


@given(steps(), st.floats(1, 2000))
def test_a_finer_cut_never_costs_more_than_the_coarse_one(
    step: tuple[Counts, int, int], overhead: float
) -> None:
    """Padded tokens plus the overhead of every micro-batch: cutting oftener must pay for itself."""
    lengths, world_size, micro_batch = step

    fine = cut(lengths, world_size=world_size, micro_batch=micro_batch, overhead=overhead)
    coarse = cut(lengths, world_size=world_size, micro_batch=micro_batch)

    def cost(pieces: tuple[Counts, ...]) -> float:
        return float(sum(overhead + len(p) * lengths[p].max(0).sum() for p in pieces))

    for fine_pieces, coarse_pieces in zip(fine, coarse, strict=True):
        assert cost(fine_pieces) <= cost(coarse_pieces) + 1e-6


def test_a_micro_batch_above_the_share_is_refused_with_the_numbers() -> None:
    """32 samples over 4 processes leave 8 for each."""
    with pytest.raises(PlanError) as raised:
        Plan(micro_batch=9, effective_batch=32, world_size=4)

    assert "micro-batch 9" in str(raised.value)
    assert "--micro-batch 8 or less" in str(raised.value)


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
