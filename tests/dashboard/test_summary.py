"""The lines that a tuning ends with, one by one."""

from pathlib import Path

import pytest

from dashboard.summary import tuned_words
from profiles import Profile
from profiles.schema import BatchSection, Fingerprint, MemorySection, RunSection, TrialRow

MIB = 2**20
PATH = Path("profiles/tuned.toml")


def row(size: int, speed: float, verdict: str = "fits", sizes: list[int] | None = None) -> TrialRow:
    return TrialRow.model_validate(
        {"size": size, "sizes": sizes, "verdict": verdict, "seconds": 4.2, "samples_per_second": speed}
    )  # fmt: skip


def profile(
    size: int = 56,
    effective: int = 64,
    *,
    sizes: list[int] | None = None,
    ranks: int = 1,
    accumulation: int = 2,
    before: int | None = None,
    eval_batch: int | None = None,
    loaders: int = 0,
    trials: tuple[TrialRow, ...] = (),
) -> Profile:
    return Profile(
        schema=1,
        batch=BatchSection(
            micro_batch_size=size,
            micro_batch_sizes=sizes,
            gradient_accumulation_steps=accumulation,
            effective_batch_size=effective,
            base_effective_batch_size=before,
            eval_batch_size=eval_batch,
        ),
        memory=MemorySection(peak_bytes=990 * MIB, budget_bytes=1000 * MIB),
        run=RunSection(loader_workers=loaders),
        fingerprint=Fingerprint(world_size=ranks, devices=["Card"] * ranks),
        trial=list(trials),
    )


def lines(found: Profile, estimated_capacity: int | None = None) -> list[str]:
    return tuned_words(found, 72.0, PATH, estimated_capacity).splitlines()


def test_a_tuning_ends_with_the_cut_the_peak_and_the_next_command() -> None:
    """No line more where there is nothing more to say."""
    assert lines(profile()) == [
        "micro-batch 56, accumulation 2, effective batch 64, found in 1 m 12 s",
        "peak 990 MiB of a budget of 0.98 GiB (99 %)",
        "wrote profiles/tuned.toml; train with it: chatlm train --profile tuned",
    ]


def test_several_devices_are_counted() -> None:
    cut, peak, *_ = lines(profile(16, 64, ranks=2))

    assert cut.startswith("micro-batch 16 on each of 2 devices, accumulation 2, effective batch 64")
    assert peak.endswith("(99 %), on the device with the least headroom")


def test_unequal_sizes_are_all_named() -> None:
    first = lines(profile(12, 36, ranks=2, sizes=[12, 6]))[0]

    assert first.startswith("micro-batch 12 + 6 on 2 devices, accumulation 2, effective batch 36")


KNEE = profile(trials=(row(1, 52.1), row(24, 405.0), row(56, 411.0), row(64, 420.0, "over")))


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (profile(eval_batch=224), "evaluation batch 224, no loader process per device"),
        (profile(eval_batch=224, loaders=1), "evaluation batch 224, 1 loader process per device"),
        (profile(eval_batch=224, loaders=4), "evaluation batch 224, 4 loader processes per device"),
        (
            profile(128, 128, accumulation=1, before=32),
            "the effective batch grew from 32 to 128, to hold a whole micro-batch per device; the "
            "learning rate stays, unless you train with --scale-lr sqrt (x 2.00) or linear (x 4.00)",
        ),
        (
            profile(32, 64, ranks=2, accumulation=1),
            "there is room for about 90 sequences per device: --effective-batch 180 would use it",
        ),
        (
            KNEE,
            "the knee is micro-batch 24: the smallest tried that is as fast (within 3 %); --prefer "
            "throughput tunes for it, and holds less memory",
        ),
    ],
    ids=["no loader", "a loader", "loaders", "grown, with both scalings", "room", "knee"],
)
def test_what_a_user_may_want_to_know_has_a_line(found: Profile, line: str) -> None:
    """Where there is something to do, with the option that does it."""
    assert line in lines(found, estimated_capacity=90)


def test_the_knee_of_unequal_devices_names_all_sizes() -> None:
    trials = (row(8, 405.0, sizes=[8, 4]), row(12, 411.0, sizes=[12, 6]))

    found = profile(12, 36, ranks=2, sizes=[12, 6], trials=trials)

    assert any(line.startswith("the knee is micro-batch 8 + 4: ") for line in lines(found))


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (profile(before=64), "grew"),  # it was kept
        (profile(8, 64, accumulation=8), "room"),  # --max-batch is the bound: no room to use
        (profile(), "knee"),
        (profile(trials=(row(56, 411.0),)), "knee"),
        (profile(trials=(row(28, 300.0), row(56, 411.0))), "knee"),  # the answer is the knee
    ],
)
def test_what_does_not_hold_is_not_said(found: Profile, word: str) -> None:
    assert not any(word in line for line in lines(found, estimated_capacity=90))
