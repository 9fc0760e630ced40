"""What a user may choose beyond the target, through the command line: per device, again, at once."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import profiles
from autotune.devices.lock import locked
from profiles import Profile
from tests.end_to_end.test_autotune_fake_gpus import TENANT, autotune
from tests.support.command_toy import TOY
from tests.support.commands import CHATLM, chatlm
from tests.support.processes import deadline, wait_until
from trainer.config.options import ScaleRule, TrainOptions
from trainer.config.resolve import rate_scale, resolve


def test_unequal_cards_get_a_micro_batch_each(tmp_path: Path) -> None:
    """The one beside a tenant takes fewer; the profile has the list."""
    done = autotune(
        tmp_path, (0, TENANT), "--target-vram", "0.68", "--max-batch", "100", "--per-device",
        "--json",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    large, small = document["micro_batch_sizes"]
    profile = profiles.load(str(tmp_path / document["profile"]))
    assert large == 100
    assert 0 < small < large
    assert all(device["peak_bytes"] <= device["budget_bytes"] for device in document["devices"])
    assert profile.batch.micro_batch_sizes == [large, small]
    assert profile.plan(2).sizes == (large, small)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--vram-limit", "1GiB"), "is for several cards, and there is one process; leave it out"),
        (("--num-processes", "2"), "these share the host's memory; leave it out, or give "),
    ],
    ids=["one process", "one memory"],
)
def test_per_device_needs_devices(flags: tuple[str, ...], message: str, tmp_path: Path) -> None:
    """Said before any worker starts."""
    done = chatlm(tmp_path, "autotune", "--device", "cpu", "--per-device", *flags)

    assert done.returncode == 1
    assert message in done.stderr


def test_a_second_tuning_at_the_same_time_waits_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would count the other's memory as a tenant's. It says who holds the device."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    said = tmp_path / "said"
    with deadline(300):
        with locked(["host-memory"], notify=print, folder=tmp_path), said.open("w") as file:
            waiting = subprocess.Popen(
                [*CHATLM, "autotune", "--device", "cpu", "--target-ram", "1", "--target-vram", "1",
                 "--max-batch", "1", *TOY, "--plain"],
                cwd=tmp_path, stdout=file, stderr=file,
            )  # fmt: skip
            told = wait_until(lambda: "waiting for it" in said.read_text())
            is_waiting = waiting.poll() is None
        code = waiting.wait()

    assert (told, is_waiting, code) == (True, True, 0)
    assert "host-memory is being tuned by process " in said.read_text()


def grown(before: int | None) -> Profile:
    """A tuned profile whose effective batch was `before` and is 32."""
    fast = profiles.load("fast")
    batch = fast.batch.model_copy(update={"base_effective_batch_size": before})
    return fast.model_copy(update={"batch": batch})


@pytest.mark.parametrize(
    ("rule", "before", "scale"),
    [
        (None, 8, 1.0),
        ("linear", 8, 4.0),
        ("sqrt", 8, 2.0),
        ("linear", None, 1.0),
        ("sqrt", 32, 1.0),
    ],
)
def test_the_learning_rate_is_scaled_only_when_asked_to(
    rule: ScaleRule | None, before: int | None, scale: float
) -> None:
    """By the growth of the effective batch, or by its root."""
    assert rate_scale(grown(before), rule) == scale


def test_a_scaled_rate_is_another_run() -> None:
    """A run that is resumed keeps its own."""
    profile = grown(8)
    plain = resolve(profile, TrainOptions(), device="cpu", world_size=2)

    scaled = resolve(profile, TrainOptions(scale_lr="sqrt"), device="cpu", world_size=2)

    assert scaled == replace(plain, rate_scale=2.0)
    assert scaled.run_key() != plain.run_key()
