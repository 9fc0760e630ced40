"""A profile trains what it was tuned with; what the user chooses otherwise is obeyed, and probed once."""

import json
from dataclasses import replace
from typing import Any

import pytest

from autotune.errors import ProfileError
from autotune.readings import DeviceBudget
from autotune.workers.launch import memory_environment
from profiles import Profile
from profiles.schema import Fingerprint, parse
from trainer.config.options import TrainOptions
from trainer.config.resolve import resolve
from trainer.config.settings import WHAT_IS_TRAINED, TrainSettings
from trainer.supervisor.fingerprint import differences, what_is_trained

LORA: dict[str, Any] = {
    "optimizer": "adafactor", "lora_rank": 4, "lora_alpha": 16.0, "lora_targets": ["q", "k"],
    "neftune_alpha": 5.0, "loss": "logits", "compile": True, "gradient_checkpointing": True,
}  # fmt: skip


def tuned(**run: Any) -> Profile:
    """A profile that was measured on this machine."""
    document = {
        "schema": 1,
        "batch": {
            "micro_batch_size": 4, "gradient_accumulation_steps": 4, "effective_batch_size": 16,
        },
        "run": {
            "precision": "fp32", "environment": memory_environment("cpu"), "loss": "chunked", **run,
        },
        "fingerprint": {"model": "m", "longest_source": 9, "longest_target": 9},
    }  # fmt: skip
    return parse(document, "tuned.toml")


def run_of(profile: Profile, **choices: Any) -> TrainSettings:
    return resolve(profile, TrainOptions(**choices), device="cpu", world_size=1)


def said(profile: Profile, settings: TrainSettings) -> list[str]:
    found = Fingerprint(model="m", longest_source=9, longest_target=9)
    return differences(profile, found, settings, ())


@pytest.mark.parametrize(("budget", "is_probed"), [(109, True), (110, False)])
def test_a_budget_that_leaves_less_than_the_noise_is_probed_again(
    budget: int, is_probed: bool
) -> None:
    """A tuning leaves twice the noise too."""
    profile = tuned()
    memory = profile.memory.model_copy(update={"peak_bytes": 100, "noise_bytes": 5})
    profile = profile.model_copy(update={"memory": memory})
    found = Fingerprint(model="m", longest_source=9, longest_target=9)
    card = DeviceBudget(device="c", name="c", total=200, others=0, budget=budget)

    told = differences(profile, found, run_of(profile), (card,))

    assert told == (["peak 100 B, now a budget of 109 B"] if is_probed else [])


@pytest.mark.parametrize("run", [{}, LORA, {"freeze": "encoder", "fsdp": True}])
def test_a_run_trains_what_the_profile_was_tuned_with(run: dict[str, Any]) -> None:
    """All of it, without a word, also after the way to the workers as JSON."""
    profile = tuned(**run)

    settings = run_of(profile)
    arrived = TrainSettings.from_json(json.loads(json.dumps(settings.as_json())))

    assert arrived == settings
    assert what_is_trained(arrived.workload) == what_is_trained(profile.run)
    assert said(profile, settings) == []


def test_a_profile_s_loader_workers_reach_the_run() -> None:
    """How they feed it, tests of checkpoints show: the same steps as without."""
    assert run_of(tuned(loader_workers=3)).loader_workers == 3


@pytest.mark.parametrize(
    ("run", "choice", "words"),
    [
        ({}, {"optimizer": "adafactor"}, ["optimizer adamw, now adafactor"]),
        ({}, {"freeze": "encoder"}, ["freeze none, now encoder"]),
        ({}, {"lora_rank": 8}, ["lora rank none, now 8"]),
        ({}, {"neftune_alpha": 5.0}, ["neftune alpha none, now 5.0"]),
        ({}, {"loss": "logits"}, ["loss chunked, now logits"]),
        ({}, {"compile": True}, ["compile off, now on"]),
        ({}, {"fsdp": True}, ["fsdp off, now on"]),
        ({}, {"gradient_checkpointing": True}, ["gradient checkpointing off, now on"]),
        # False is a choice; only None leaves it to the profile
        (LORA, {"gradient_checkpointing": False}, ["gradient checkpointing on, now off"]),
        (
            LORA,
            {"lora_rank": 64, "lora_targets": ("q", "v", "o")},
            ["lora rank 4, now 64", "lora targets q + k, now q + v + o"],
        ),
    ],
)
def test_what_the_user_chooses_otherwise_is_obeyed_and_probed(
    run: dict[str, Any], choice: dict[str, Any], words: list[str]
) -> None:
    """What differs from the profile's is said: that causes the one probe before the run."""
    profile = tuned(**run)

    settings = run_of(profile, **choice)

    obeyed = replace(run_of(profile).workload, **choice)
    assert settings.workload == obeyed
    assert said(profile, settings) == words


def test_a_profile_without_a_loss_was_measured_with_logits_and_trains_without() -> None:
    """It was made before there was a choice. The run takes no more memory; one probe shows it."""
    document = tuned().model_dump(by_alias=True)
    del document["run"]["loss"]
    profile = Profile.model_validate(document)

    settings = run_of(profile)

    assert settings.workload.loss == "chunked"
    assert said(profile, settings) == ["loss logits, now chunked"]
    assert said(profile, run_of(profile, loss="logits")) == []


def test_what_differs_is_said_in_a_short_line_whatever_the_profile_holds() -> None:
    """Names of devices in a file may be long, many, or steer the terminal."""
    measured = tuned().model_dump(by_alias=True)
    measured["fingerprint"] |= {"devices": ["x"] * 10_000, "torch": "\x1b[2J" * 1000}
    profile = Profile.model_validate(measured)

    differing = "; ".join(said(profile, run_of(profile)))

    assert differing.startswith("devices x + x + x")
    assert r"torch '\x1b[2J\x1b[2J" in differing
    assert differing.isprintable()
    assert len(differing) < 400


def test_every_choice_has_its_place_in_profile_and_choices() -> None:
    """Under one name."""
    for values in (tuned().run, TrainOptions(), run_of(tuned()).workload):
        assert all(hasattr(values, name) for name in WHAT_IS_TRAINED)


def test_what_is_trained_makes_the_run_and_how_it_is_computed_does_not() -> None:
    """A resume may checkpoint activations or compile; it may not change adapters or schedule."""
    same = run_of(tuned(), compile=True, gradient_checkpointing=True, fsdp=True, loss="logits")
    other = [
        run_of(tuned(), **choice)
        for choice in ({"lora_rank": 4}, {"optimizer": "adafactor"}, {"schedule": "linear"})
    ]

    run_key = run_of(tuned()).run_key()

    assert same.run_key() == run_key
    assert all(run.run_key() != run_key for run in other)


def test_an_unknown_choice_in_a_profile_is_refused_with_the_nearest() -> None:
    """By the schema."""
    with pytest.raises(ProfileError) as misspelt:
        tuned(lora_rnk=4)
    with pytest.raises(ProfileError) as unknown:
        tuned(optimizer="sgd")

    assert (
        str(misspelt.value) == "tuned.toml: unknown key 'run.lora_rnk'; did you mean 'lora_rank'?"
    )
    assert "'run.optimizer' is 'sgd'" in str(unknown.value)
