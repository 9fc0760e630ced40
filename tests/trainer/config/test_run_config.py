"""A run's settings in a TOML file: what is read, what is refused, and that a saved one repeats the run."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

import profiles
from autotune.errors import OutputError, UsageError
from trainer.artifacts.run_folder import RunFolder
from trainer.config.flags import parse
from trainer.config.options import PANELS, AutotuneOptions, TrainOptions, WorkloadOptions
from trainer.config.resolve import resolve
from trainer.config.run_config import load_run, save_run
from trainer.config.settings import TrainSettings, WorkloadSettings


def written(folder: Path, text: str) -> Path:
    file = folder / "run.toml"
    file.write_text(text)
    return file


def refusal_of(file: Path) -> str:
    with pytest.raises(UsageError) as caught:
        load_run(file)
    return str(caught.value)


def test_the_keys_are_the_flags(tmp_path: Path) -> None:
    """With dashes, as on the command line, or underscores."""
    file = written(tmp_path, 'max-steps = 7\neval_data = ["a.jsonl"]\nepochs = 2\n')

    chosen = load_run(file)
    arguments = ["--max-steps", "7", "--eval-data", "a.jsonl", "--epochs", "2"]
    given = parse(arguments, help=None, read=load_run)

    assert chosen == given == {"max_steps": 7, "eval_data": ("a.jsonl",), "epochs": 2.0}


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    """Never ignored."""
    assert "unknown key max_step; did you mean max_steps?" in refusal_of(
        written(tmp_path, "max_step = 7\n")
    )


def test_one_key_written_in_two_ways_is_refused(tmp_path: Path) -> None:
    """Either might be meant."""
    said = refusal_of(written(tmp_path, "max-steps = 4\nmax_steps = 3\n"))

    assert "has max-steps and max_steps, which are one key; keep one" in said


@pytest.mark.parametrize(
    "line", ['max_steps = "7"', 'precision = "int8"', 'schedule = "cosin"', "data = 3"]
)
def test_a_value_of_another_type_is_refused_by_name(tmp_path: Path, line: str) -> None:
    """With the key and what stands there."""
    key, _, value = line.partition(" = ")

    said = refusal_of(written(tmp_path, line))

    assert f"{key} is {value.replace(chr(34), chr(39))}" in said


def test_what_is_no_toml_or_not_there_is_said(tmp_path: Path) -> None:
    """One line each."""
    assert "is not TOML" in refusal_of(written(tmp_path, "max_steps = \n"))
    assert "No such file" in refusal_of(tmp_path / "none.toml")


def test_a_saved_run_resolves_to_the_same_settings(tmp_path: Path) -> None:
    """Once the profile is gone or another, too: it is saved beside it."""
    options = TrainOptions(
        profile="small", max_steps=9, seed=3, eval_data=("e.jsonl",), lora_rank=4, dropout=0.0,
        micro_batch=2, scale_lr="sqrt", length_grouping=True, output_dir=str(tmp_path),
    )  # fmt: skip
    settings = resolve(profiles.load("small"), options, device="cpu", world_size=2)

    save_run(tmp_path, settings, learning_rate=0.003)
    again = TrainOptions(**load_run(tmp_path / "run.toml"))

    repeated = resolve(
        profiles.load(again.profile),
        again,
        device="cpu",
        world_size=again.num_processes or 0,
    )
    assert again.profile == str(tmp_path / "profile.toml")
    assert repeated.learning_rate == 0.003
    assert repeated.run_key() == {**settings.run_key(), "learning_rate": 0.003}
    assert repeated.plan(2) == settings.plan(2)


def test_a_run_is_repeated_in_its_own_folder(tmp_path: Path) -> None:
    """`--config RUN/run.toml --fresh`: the profile that it names lies in the folder that is cleared."""
    options = TrainOptions(profile="small", output_dir=str(tmp_path))
    settings = resolve(profiles.load("small"), options, device="cpu", world_size=1)
    folder = RunFolder(tmp_path)
    folder.claim(settings.run_key(), fresh=False)
    save_run(tmp_path, settings, learning_rate=0.003)
    again = TrainOptions(**load_run(tmp_path / "run.toml"))
    repeated = resolve(profiles.load(again.profile), again, device="cpu", world_size=1)

    folder.claim(repeated.run_key(), fresh=True)
    save_run(tmp_path, repeated, learning_rate=0.003)

    assert TrainOptions(**load_run(tmp_path / "run.toml")) == again


def test_an_unfinished_run_goes_on_by_its_own_file(tmp_path: Path) -> None:
    """Its file names the rate that the model's default came to; the first command goes on as well."""
    options = TrainOptions(profile="small", max_steps=9, output_dir=str(tmp_path))
    settings = resolve(profiles.load("small"), options, device="cpu", world_size=1)
    folder = RunFolder(tmp_path)
    folder.claim(settings.run_key(), fresh=False, learning_rate=0.003)
    save_run(tmp_path, settings, learning_rate=0.003)
    folder.metrics.add({"step": 1})
    again = TrainOptions(**load_run(tmp_path / "run.toml"))
    repeated = resolve(profiles.load(again.profile), again, device="cpu", world_size=1)

    folder.claim(repeated.run_key(), fresh=False, learning_rate=0.003)
    folder.claim(settings.run_key(), fresh=False, learning_rate=0.003)

    with pytest.raises(OutputError, match=r"learning rate None, now 0\.001"):
        folder.check({**settings.run_key(), "learning_rate": 0.001}, fresh=False)


def test_what_a_user_took_out_of_a_profile_stays_out(tmp_path: Path) -> None:
    """The file is read with that profile again: a key that is left out would put it back."""
    profile = profiles.load("small")
    frozen = profile.run.model_copy(update={"freeze": "encoder"})
    adapted = profile.run.model_copy(update={"lora_rank": 4, "lora_alpha": 8.0})
    for run, options in (
        (frozen, TrainOptions(freeze="none")),
        (adapted, TrainOptions(lora_rank=0)),
    ):
        file = tmp_path / "own.toml"
        profiles.save(profile.model_copy(update={"run": run}), file)
        settings = resolve(
            profiles.load(str(file)),
            replace(options, profile=str(file)),
            device="cpu",
            world_size=1,
        )
        save_run(tmp_path, settings, learning_rate=0.003)

        again = TrainOptions(**load_run(tmp_path / "run.toml"))
        repeated = resolve(profiles.load(again.profile), again, device="cpu", world_size=1)

        assert repeated.workload == settings.workload


def test_no_choice_is_ignored() -> None:
    """Each goes into the settings under its own name, or has its own place where it is read."""
    elsewhere = {"profile", "device", "num_processes", "scale_lr"}
    known = {f.name for kind in (WorkloadSettings, TrainSettings) for f in fields(kind)}

    for kind in (WorkloadOptions, TrainOptions):
        assert {field.name for field in fields(kind)} <= known | elsewhere


def test_every_heading_of_the_help_names_choices_that_there_are() -> None:
    """And each of them once."""
    named = [name for names in PANELS.values() for name in names]
    known = {f.name for kind in (AutotuneOptions, TrainOptions) for f in fields(kind)}

    assert len(named) == len(set(named))
    assert set(named) <= known


def test_the_two_commands_agree_on_what_a_step_needs() -> None:
    """What memory depends on has the same flags in both."""
    shared = {field.name for field in fields(WorkloadOptions)}

    assert shared <= {field.name for field in fields(AutotuneOptions)}
    assert shared <= {field.name for field in fields(TrainOptions)}


def test_a_process_of_its_own_reads_the_file_too(tmp_path: Path) -> None:
    """`python -m trainer --config run.toml`: a flag beside it counts more."""
    file = written(tmp_path, "max-steps = 7\nepochs = 2\n")

    given = parse(["--config", str(file), "--max-steps", "9"], help=None, read=load_run)

    assert given == {"max_steps": 9, "epochs": 2.0}
