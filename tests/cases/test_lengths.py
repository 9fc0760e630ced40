"""Lengths that vary: the longest comes late, short and long alternate, and other data come next."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import profiles
from autotune.devices.group import EmulatedDevices
from autotune.devices.selection import DeviceSelection
from autotune.partition import Costs
from autotune.plan import Plan
from autotune.tuning.prober import Limits
from autotune.verdict import Verdict
from autotune.workers.launch import memory_environment
from profiles.schema import parse
from tests.support import tiny
from tests.support.probers import peak_of, prober_of
from tests.support.processes import each_within
from tests.support.toy_workload import MIB, toy
from trainer.batching.collator import Batch
from trainer.batching.step_loader import Steps
from trainer.config.options import TrainOptions
from trainer.config.resolve import resolve
from trainer.config.settings import WorkloadSettings
from trainer.data.sample_order import PlainSteps, SampleOrder, count_steps
from trainer.pretrained.loading import load_model
from trainer.reading.readers import bundled
from trainer.supervisor.fingerprint import differences, fingerprint, previous_sizes
from trainer.workload import build

LIMITS = Limits(target=0.6, target_ram=0.8)
nothing_hangs = each_within(300)


@pytest.mark.parametrize("overhead", [None, 40.0])
@pytest.mark.parametrize("shares", [None, (0.3, 0.6)])
def test_no_step_of_an_epoch_has_a_batch_beyond_the_probes(
    overhead: float | None, shares: tuple[float, ...] | None
) -> None:
    """A bump of memory hours later would be a batch that the probe's worst one did not cover."""
    loaded = load_model("chatlm-tiny", dropout=0.0, seed=0)
    collator = tiny.collator(loaded.model, loaded.encoder, bundled("train"), longest=256)
    costs = Costs(longest=collator.longest(), memory_fractions=shares, overhead=overhead)
    plan = Plan(micro_batch=24, effective_batch=64, world_size=1)
    order = PlainSteps(SampleOrder(len(collator.store), 3), plan.effective_batch)
    steps = Steps(collator, order, plan, costs=costs, rank=0)
    worst = shape(collator.worst_case_batch(24))

    shapes = [
        shape(batch)
        for step in range(count_steps(len(collator.store), 64, 1.0, None))
        for batch in steps[step].batches
    ]

    assert all(
        size <= 24 or costs.sequences(size, np.array(sides)) <= 24 for size, *sides in shapes
    )
    if overhead is None:  # then as few micro-batches as fit: short samples travel together
        assert max(size for size, *_ in shapes) > 24
    highest = tuple(map(max, zip(*shapes, strict=True)))
    assert highest[1:] == worst[1:]  # the longest do come up, in one batch or another


def shape(batch: Batch) -> tuple[int, int, int]:
    """Sequences, and the tokens to which sources and targets are padded."""
    return batch.samples, batch.inputs["input_ids"].shape[1], batch.labels.shape[1]


@pytest.mark.parametrize(("caches", "samples"), [(True, [32, 16, 1]), (False, [4, 1])])
def test_a_probe_mixes_short_and_long_none_beyond_the_worst(
    caches: bool, samples: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They leave an allocator's cache in pieces; where nothing stays cached, few are enough to warm up."""
    settings = {**WorkloadSettings().as_json(), "effective": 1, "effective_fixed": False}
    workload = build(settings)
    ran: list[tuple[int, int, int]] = []

    def note(batches: list[Batch], *, target_tokens: int) -> Any:
        ran.extend(map(shape, batches))
        return torch.zeros(())

    monkeypatch.setattr(workload.engine, "forward_backward", note)
    monkeypatch.setattr(workload.memory, "caches", caches)

    workload.forward_backward(32)
    workload.mixed_lengths_step(32)

    worst, *mixed = ran
    assert [count for count, _, _ in mixed] == samples
    assert len({source for _, source, _ in mixed}) > 1
    assert all(seen <= most for one in mixed for seen, most in zip(one, worst, strict=True))


def test_a_dry_run_is_longest_on_one_side_or_on_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tuning takes the memory of one side as a share of that of both."""
    workload = build({**WorkloadSettings().as_json(), "effective": 1, "effective_fixed": False})
    ran: list[tuple[int, int, int]] = []
    monkeypatch.setattr(workload.engine, "dry_run", lambda batches: ran.extend(map(shape, batches)))
    source, target = workload._collator.longest()

    assert all(workload.dry_run(3, side) for side in (None, 0, 1))

    assert ran == [(3, source, target), (3, source, 1), (3, 1, target)]


def test_what_a_step_takes_more_after_a_mix_is_in_the_peak(tmp_path: Path) -> None:
    """The worst batch runs again in the memory that short and long ones have left in pieces."""
    with prober_of(tmp_path, toy(scattered=30 * MIB), target=0.8) as prober:
        trial = prober.probe(20)

    assert trial.static_bytes is not None
    assert peak_of(trial) - trial.static_bytes == pytest.approx(50 * MIB, abs=4 * MIB)


def test_an_allocator_that_flushes_its_cache_to_go_on_is_over(tmp_path: Path) -> None:
    """It runs, thrashing; the next long batch would be out of memory."""
    with prober_of(tmp_path, toy(retries=1), target=0.8) as prober:
        trial = prober.probe(2)

    assert (trial.verdict, trial.reason) == (Verdict.OVER, "the allocator thrashed")


FOUND = {
    "model": "toy", "torch": "2", "longest_source": 50, "longest_target": 40, "world_size": 1,
}  # fmt: skip


def group() -> DeviceSelection:
    return DeviceSelection(group=EmulatedDevices(1024 * MIB, 1), world_size=1)


def tuned_on(workload_info: dict[str, Any]) -> profiles.Profile:
    """The profile of a tuning that had this workload info."""
    document: dict[str, Any] = {
        "schema": 1,
        "batch": {
            "micro_batch_size": 8, "gradient_accumulation_steps": 2, "effective_batch_size": 16,
        },
        "memory": {
            "target_vram": 0.6, "target_ram": 0.8, "vram_limit_bytes": 1024 * MIB,
            "peak_bytes": 500 * MIB,
        },
        "run": {"precision": "fp32", "loss": "chunked", "environment": memory_environment("cpu")},
    }  # fmt: skip
    profile = parse(document, "tuned.toml")
    return profile.model_copy(update={"fingerprint": fingerprint(workload_info, group())})


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({}, []),
        ({"longest_source": 50, "longest_target": 7}, []),
        ({"longest_source": 500}, ["longest source 50 tokens, now 500"]),
        ({"longest_target": 41}, ["longest target 40 tokens, now 41"]),
    ],
    ids=["the same", "shorter", "longer sources", "longer targets"],
)
def test_a_profile_of_shorter_data_is_not_believed(now: dict[str, Any], said: list[str]) -> None:
    """Its size is probed once before the run; one of longer data still holds."""
    profile = tuned_on(FOUND)
    settings = resolve(profile, TrainOptions(), device="cpu", world_size=1)

    differing = differences(profile, fingerprint({**FOUND, **now}, group()), settings, ())

    assert differing == said


@pytest.mark.parametrize(("longest", "guess"), [(50, (8,)), (51, None), (49, None)])
def test_an_earlier_size_is_a_guess_for_data_of_the_same_lengths_alone(
    longest: int, guess: tuple[int, ...] | None, tmp_path: Path
) -> None:
    """And a guess is probed like any other size: it is never an answer unseen."""
    path = tmp_path / "tuned.toml"
    profiles.save(tuned_on(FOUND), path)
    workload_info = {"fingerprint": {**FOUND, "longest_source": longest}, "precision": "fp32"}

    found = previous_sizes(path, LIMITS, 1024 * MIB, group(), WorkloadSettings(), workload_info)

    assert found == guess
