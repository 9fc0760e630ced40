"""`chatlm autotune` on emulated cards, as a user runs it.

The real model, or the toy where the claim is about the command and not about what a worker computes.
"""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pexpect
import pytest

import profiles
from autotune.events import ProbeStarted
from autotune.verdict import Verdict
from dashboard.event_log import read_events
from tests.support.command_toy import TOY
from tests.support.commands import CHATLM, chatlm, output_of, start, steps
from tests.support.probers import prober_of
from tests.support.processes import each_within, still_running, wait_until, workers_of
from tests.support.shared import once
from trainer.config.settings import WorkloadSettings

MIB = 2**20
SMALL_CARD = 360 * MIB
TUNE = (
    "autotune", "--device", "cpu", "--vram-limit", str(SMALL_CARD), "--target-vram", "0.6",
    "--max-batch", "64", "--effective-batch", "64",
)  # fmt: skip
TUNE_TOY = ("autotune", "--device", "cpu", "--vram-limit", "400MiB", "--target-vram", "0.6", *TOY)
nothing_hangs = each_within(300)


def has_event(file: Path, kind: type, count: int) -> bool:
    """Whether so many events of this kind have been recorded."""
    if not file.exists():
        return False
    return sum(isinstance(event, kind) for _, event in read_events(file)) >= count


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def misbehave(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    """Gives the toy in every worker these settings."""
    monkeypatch.setenv("CHATLM_TOY", json.dumps(settings))


def check(document: dict[str, Any], folder: Path) -> None:
    """What holds of every answer: it ran, it fitted on each device, and the next larger failed."""
    size = document["micro_batch_size"]
    by_size = {trial["size"]: trial for trial in document["trials"]}
    larger = [trial for trial in document["trials"] if trial["size"] > size]
    profile = profiles.load(str(folder / document["profile"]))
    assert by_size[size]["verdict"] == "fits"
    assert {trial["verdict"] for trial in larger} <= {"over", "oom"}
    assert all(device["peak_bytes"] <= device["budget_bytes"] for device in document["devices"])
    assert profile.batch.micro_batch_size == size
    assert profile.interrupted == document["interrupted"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a user who tuned for all that the card holds, and the document."""

    def tune(folder: Path) -> None:
        (folder / "out.json").write_text(output_of(folder, *TUNE, "--json", "--plain"))

    folder = once(tmp_path_factory, "tuned", tune)
    return folder, json.loads((folder / "out.json").read_text())


def test_a_second_tuning_of_the_same_takes_one_probe(tmp_path: Path) -> None:
    """The earlier answer is probed first, and it holds; with another target nothing is guessed."""
    first, second, other = (
        json.loads(output_of(tmp_path, *TUNE_TOY, *flags, "--json", "--plain"))
        for flags in ((), (), ("--max-batch", "2", "--target-vram", "0.7"))
    )

    assert len(first["trials"]) > 1
    assert [trial["size"] for trial in second["trials"]] == [first["micro_batch_size"]]
    assert other["trials"][0]["size"] == 1


def test_the_answer_is_the_documented_json_and_a_profile(
    tuned: tuple[Path, dict[str, Any]],
) -> None:
    """One document on stdout, nothing else there, and a file that `train` can load."""
    folder, document = tuned

    assert list(document) == [
        "schema", "profile", "micro_batch_size", "effective_batch_size",
        "gradient_accumulation_steps", "target", "interrupted", "devices", "trials", "seconds",
        "micro_batch_sizes", "eval_batch_size", "loader_workers", "knee", "would_hold",
    ]  # fmt: skip
    assert document["profile"] == "profiles/tuned.toml"
    assert [list(device) for device in document["devices"]] == [
        [
            "name", "total_bytes", "others_bytes", "budget_bytes", "peak_bytes", "margin_bytes", "context_bytes",
            "reserved_bytes", "allocated_bytes", "libraries_bytes", "mapped_bytes",
        ]
    ]  # fmt: skip
    assert document["devices"][0]["libraries_bytes"] > 100 * MIB
    assert document["devices"][0]["total_bytes"] == SMALL_CARD
    assert document["devices"][0]["budget_bytes"] == int(0.6 * SMALL_CARD)
    assert document["devices"][0]["peak_bytes"] > 0.95 * document["devices"][0]["budget_bytes"]
    check(document, folder)


def test_no_step_of_training_peaks_above_the_budget_or_its_probe(
    tuned: tuple[Path, dict[str, Any]],
) -> None:
    """A dry run of the worst batch at the tuned size, then real steps: the highest of all.

    It is below the probe's peak where a finer cut pays.
    """
    folder, document = tuned

    output_of(
        folder, "train", "--device", "cpu", "--profile", "tuned", "--max-steps", "6", "--generate-rows", "4",
        "--output-dir", "run", "--plain",
    )  # fmt: skip

    (card,) = document["devices"]
    records = steps(folder / "run")
    highest = max(record["device_peak_bytes"] for record in records)
    assert [record["samples"] for record in records] == [64 * n for n in range(1, 7)]
    assert highest <= card["budget_bytes"]
    assert 0.85 * card["peak_bytes"] <= highest <= 1.02 * card["peak_bytes"]


def test_the_host_is_a_device_of_its_own(tmp_path: Path) -> None:
    """Without an emulated card the workers' pages count against what the host has free."""
    done = chatlm(
        tmp_path, "autotune", "--device", "cpu", "--target-vram", "1", "--target-ram", "1",
        "--max-batch", "2", *TOY, "--json", "--plain",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    (card,) = document["devices"]
    assert "on the CPU, against host RAM" in done.stderr
    assert card["name"] == "CPU"
    assert card["others_bytes"] > 0
    assert card["budget_bytes"] == card["total_bytes"] - card["others_bytes"]
    assert document["micro_batch_size"] == 2
    check(document, tmp_path)


def test_a_worker_that_is_killed_in_a_probe_costs_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size is probed again by a fresh worker, and the search goes on."""
    misbehave(monkeypatch, how="kill", at=2, once=str(tmp_path / "killed"))

    done = chatlm(tmp_path, *TUNE_TOY, "--max-batch", "24", "--json", "--plain")

    assert done.returncode == 0, done.stderr
    assert "the worker was killed (SIGKILL); trying once more" in done.stderr
    document = json.loads(done.stdout)
    assert document["micro_batch_size"] == 24
    check(document, tmp_path)


def test_ctrl_c_in_a_terminal_keeps_the_best_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The profile says so, the cursor is back, and no worker is left."""
    misbehave(monkeypatch, how="hang", at=2)
    events = tmp_path / "events.jsonl"
    child = pexpect.spawn(
        CHATLM[0], [*CHATLM[1:], *TUNE_TOY, "--events", str(events)],
        cwd=tmp_path, dimensions=(30, 100), timeout=300, encoding="utf-8", codec_errors="replace",
    )  # fmt: skip
    try:
        # what is not read fills the terminal, and whoever draws on it waits
        assert wait_until(
            lambda: (
                not child.expect(pexpect.TIMEOUT, timeout=0.05)
                and has_event(events, ProbeStarted, 2)
            )
        )
        workers = workers_of(child.pid)

        child.sendintr()
        child.expect(pexpect.EOF)
    finally:
        child.close(force=True)

    assert child.exitstatus == 130
    assert len(workers) == 1
    assert still_running(workers) == []
    assert child.before.rfind("\x1b[?25h") > child.before.rfind("\x1b[?25l")
    assert "Traceback" not in child.before
    found = profiles.load(str(tmp_path / "profiles" / "tuned.toml"))
    assert found.interrupted
    assert [row.verdict for row in found.trial if row.size == found.batch.micro_batch_size] == [
        "fits"
    ]


def test_ctrl_c_before_anything_fitted_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the worker builds its workload; there is no best so far."""
    misbehave(monkeypatch, how="hang", building=True)
    process = start(tmp_path, *TUNE_TOY, "--json", "--plain")
    assert wait_until(lambda: workers_of(process.pid) != [])
    workers = workers_of(process.pid)

    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)

    assert (code, out) == (130, "")
    assert err.endswith("chatlm: interrupted\n")
    assert "Traceback" not in err
    assert not (tmp_path / "profiles").exists()
    assert still_running(workers) == []


@pytest.mark.parametrize(
    ("toy", "told"),
    [
        # it stays in memory until a meter has seen it
        ({"fixed": 200 * MIB, "how": "hang", "building": True}, ("the model and its optimizer alone do not fit: stopped at ",
               "past the hard limit of 140 MiB; try a higher target")),
        ({"fixed": 125 * MIB}, ("nothing fits: micro-batch 1 peaks at ",
               "the budget of emulated card is 120 MiB", "try a higher --target-vram")),
    ],
    ids=["the model", "one sequence"],
)  # fmt: skip
def test_a_card_that_is_too_small_is_said(
    toy: dict[str, Any], told: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the figures, and what to try; nothing is written."""
    misbehave(monkeypatch, **toy)

    done = chatlm(tmp_path, *TUNE_TOY, "--target-vram", "0.3", "--max-batch", "64", "--plain")

    assert done.returncode == 1
    assert done.stderr.startswith(f"chatlm: {told[0]}")
    assert all(part in done.stderr for part in told)
    assert not (tmp_path / "profiles").exists()


def test_torch_refused_an_allocation_is_out_of_memory(tmp_path: Path) -> None:
    """By the emulated card, in the middle of a real step; tests of the prober have what comes next."""
    settings = WorkloadSettings(max_source_length=32, max_target_length=32).as_json()
    settings |= {"effective": 1, "effective_fixed": False}
    with prober_of(
        tmp_path, settings, path="trainer.workload:build", card=300 * MIB, target=1.0
    ) as prober:
        refused = prober.probe(2000)
        left = workers_of(os.getpid())

    assert refused.verdict is Verdict.OOM
    assert "DefaultCPUAllocator: can't allocate memory" in (refused.reason or "")
    assert still_running(left) == []
