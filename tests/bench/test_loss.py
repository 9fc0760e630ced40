"""What the comparison of both losses makes of its figures; the runs themselves are `make bench`'s."""

from typing import Any

from bench.loss import ROUNDS, bytes_a_sample, in_turns
from bench.table import loss_rows, read


def test_memory_a_sample_is_the_growth_between_the_smallest_size_and_the_largest() -> None:
    """A trial without a peak was out of memory."""
    trials: list[dict[str, Any]] = [
        {"size": 11, "peak_bytes": 2000},
        {"size": 1, "peak_bytes": 1000},
        {"size": 40, "peak_bytes": None},
    ]

    assert bytes_a_sample(trials) == 100.0


def test_both_ways_begin_a_round_by_turns() -> None:
    """After one round that is not counted."""
    order: list[str] = []

    seconds = in_turns({"logits": lambda: order.append("l"), "chunked": lambda: order.append("c")})

    assert "".join(order) == "lccl" * ((ROUNDS + 1) // 2)
    assert [len(times) for times in seconds.values()] == [ROUNDS, ROUNDS]


def test_the_readme_has_each_model() -> None:
    """From the committed file."""
    document = read("loss-cpu")

    assert len(loss_rows(document)) == len(document["models"]) == 4
