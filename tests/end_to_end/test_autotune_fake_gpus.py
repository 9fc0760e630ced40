"""`chatlm autotune` through the real NVML binding, on two made-up cards with a tenant on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import profiles
from autotune.events import ProbeEnded
from autotune.trial import Trial
from autotune.verdict import Verdict
from dashboard.event_log import read_events
from tests.support.command_toy import TOY
from tests.support.fake_gpus import CONTEXT, TOTAL
from tests.support.toy_workload import ROOT

TENANT = 5_400_000_000
TARGET = 0.68


def autotune(
    folder: Path, tenants: tuple[int, ...], *arguments: str, shown: str | None = None
) -> "subprocess.CompletedProcess[str]":
    """`chatlm autotune` on cards of 8 GiB on which the tenants hold so much."""
    environment = dict(os.environ)
    if shown is not None:
        environment["CUDA_VISIBLE_DEVICES"] = shown
    script = [sys.executable, "-P", str(ROOT / "tests" / "support" / "fake_gpus.py")]
    return subprocess.run(
        [
            *script, ",".join(map(str, tenants)), "autotune", "--device", "cuda", *TOY, "--plain",
            *arguments,
        ],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def trials(events: Path) -> list[Trial]:
    return [event.trial for _, event in read_events(events) if isinstance(event, ProbeEnded)]


def test_the_card_with_a_tenant_decides(tmp_path: Path) -> None:
    """The answer is the size that the card whose tenant holds 5.4 GB can take."""
    events = tmp_path / "events.jsonl"
    done = autotune(
        tmp_path, (0, TENANT), "--target-vram", str(TARGET), "--max-batch", "512", "--json",
        "--events", str(events),
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    budgets = [int(TARGET * TOTAL), int(TARGET * TOTAL) - TENANT]
    assert "Fake GPU 1 allows " in done.stderr
    assert "the smaller one decides, unless you give --per-device" in done.stderr
    assert [device["name"] for device in document["devices"]] == ["Fake GPU 0", "Fake GPU 1"]
    assert [device["total_bytes"] for device in document["devices"]] == [TOTAL, TOTAL]
    assert [device["others_bytes"] for device in document["devices"]] == [0, TENANT]
    assert [device["budget_bytes"] for device in document["devices"]] == budgets

    found = trials(events)
    size = document["micro_batch_size"]
    too_large = [trial for trial in found if trial.verdict is Verdict.OVER]
    assert [trial.size for trial in found if trial.tightest != 1] == []
    assert all(
        (trial.verdict is Verdict.FITS) == (trial.device_peaks[1] <= budgets[1]) for trial in found
    )
    assert all(trial.device_peaks[0] <= budgets[0] for trial in too_large)  # alone it could go on
    assert size == max(trial.size for trial in found if trial.verdict is Verdict.FITS)
    assert document["devices"][1]["peak_bytes"] > 0.95 * budgets[1]

    profile = profiles.load(str(tmp_path / document["profile"]))
    assert profile.batch.micro_batch_size == size
    assert profile.memory.others_bytes == TENANT
    assert profile.fingerprint.devices == ["Fake GPU 0", "Fake GPU 1"]
    assert profile.fingerprint.driver == "600.10"
    assert profile.fingerprint.world_size == 2


def test_a_peak_has_the_context_that_torch_cannot_see(tmp_path: Path) -> None:
    """One card of two, which pretends to be smaller: others' share is as large as before."""
    events = tmp_path / "events.jsonl"
    done = autotune(
        tmp_path, (TENANT, 10**9), "--target-vram", "0.8", "--vram-limit", "6GiB",
        "--max-batch", "2", "--json", "--events", str(events), shown="1",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    (card,) = document["devices"]
    last = trials(events)[-1]
    assert card["name"] == "Fake GPU 1 as 6.00 GiB"
    assert (card["total_bytes"], card["others_bytes"]) == (6 * 2**30, 10**9)
    assert card["budget_bytes"] == int(0.8 * 6 * 2**30) - 10**9
    assert last.peak is not None
    assert last.host_peak is not None
    assert document["micro_batch_size"] == last.size == 2
    assert last.peak == card["peak_bytes"]
    assert last.peak > last.host_peak + CONTEXT - 4 * 2**20  # the two are counted apart


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_card_that_others_have_filled_is_said(processes: str, tmp_path: Path) -> None:
    """With the figures; no worker is started, nothing is written."""
    tenants = (0, TENANT) if processes == "2" else (TENANT, 0)
    done = autotune(tmp_path, tenants, "--target-vram", "0.5", "--num-processes", processes)

    assert done.returncode == 1
    assert done.stderr == (
        f"chatlm: Fake GPU {int(processes) - 1}: others hold 5.03 GiB of 8.00 GiB, which is the "
        f"whole target of 50 % already; tune for a higher --target-vram, or wait until they are "
        f"done\n"
    )
    assert not (tmp_path / "profiles").exists()
